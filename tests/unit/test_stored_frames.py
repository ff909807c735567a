"""Closed runs of a SQLite log that are read again after a start."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reattach import slow_disk
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Log
from reattach.log.sqlite import read_pool, stored_frames
from reattach.log.sqlite.log import Sizes, SqliteLog
from tests.support.live_server import WAIT_SECONDS
from tests.support.log_stores import SMALL

FRAMES = [b"data: %d\n\n" % number * (1 + number % 3) for number in range(1, 200)]
SIZES = replace(SMALL, closed_runs_bytes=1024 * 1024)


class Asked:
    """Counts the questions to the file that a thread answers."""

    count = 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    counts, query = Asked(), SqliteLog.query

    async def counted(self: SqliteLog, work: Callable[[sqlite3.Connection], Any]) -> Any:
        counts.count += 1
        return await query(self, work)

    monkeypatch.setattr(SqliteLog, "query", counted)
    return counts


async def opened_again(file: Path, sizes: Sizes = SIZES) -> SqliteLog:
    """A log that has the closed run ``run`` only in chunks."""
    log = await SqliteLog.open_file(file, sizes=sizes)
    writer = await log.open("run", Token(1))
    await writer.append(Seq(1), FRAMES)
    await writer.append(Seq(len(FRAMES) + 1), [], close=True)
    await folded(log)
    await log.aclose()
    log = await SqliteLog.open_file(file, sizes=sizes)
    assert "run" not in log.runs or not log.runs["run"].tail.size_bytes
    return log


async def folded(log: SqliteLog) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while "run" in log.runs and log.runs["run"].first_row is not None:
            await asyncio.sleep(0.001)


async def piece(log: Log, after: int, max_bytes: int = 500) -> bytes:
    return (await log.read("run", Seq(after), max_bytes=max_bytes, max_events=1000)).frames


async def all_slices(log: Log, after: int = 0) -> list[bytes]:
    pieces = []
    while after < len(FRAMES):
        cut = await log.read("run", Seq(after), max_bytes=500, max_events=1000)
        pieces.append(cut.frames)
        after = cut.last_seq
    return pieces


async def test_the_first_reader_of_a_run_keeps_nothing_and_needs_no_thread(
    tmp_path: Path, asked: Asked
) -> None:
    log = await opened_again(tmp_path / "log.db")
    async with log.follow("run") as tail:
        asked.count = 0
        assert b"".join(await all_slices(log)) == b"".join(FRAMES)
        assert (tail.size_bytes, asked.count) == (0, 0)
    await log.aclose()


async def test_the_second_slice_of_a_second_reader_loads_the_run_for_all_readers(
    tmp_path: Path, asked: Asked
) -> None:
    log = await opened_again(tmp_path / "log.db")
    async with log.follow("run") as tail:
        asked.count = 0
        first = await log.read("run", Seq(0), max_bytes=500, max_events=1000)
        assert await piece(log, 0) == first.frames
        assert tail.size_bytes == 0
        await piece(log, first.last_seq)
        assert (tail.first_seq, tail.size_bytes) == (1, sum(map(len, FRAMES)))
        assert b"".join(await all_slices(log)) == b"".join(FRAMES)
        assert (await all_slices(log))[0] == first.frames
    assert asked.count == 1  # For everything.
    await log.aclose()


@pytest.fixture
async def slow_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteLog]:
    """A log on a disk so slow that a read in the event loop is the last one there."""
    log = await opened_again(tmp_path / "log.db")
    monkeypatch.setattr(read_pool, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(slow_disk, "_FACTOR", 1_000_000)
    yield log
    await log.aclose()


async def test_on_a_slow_disk_the_first_reader_loads_the_run_in_a_thread(
    slow_log: SqliteLog, asked: Asked
) -> None:
    async with slow_log.follow("run") as tail:
        asked.count = 0
        assert b"".join(await all_slices(slow_log)) == b"".join(FRAMES)
        assert asked.count == 2  # A slice, and everything.
        assert tail.size_bytes == sum(map(len, FRAMES))


async def test_on_a_slow_disk_runs_are_looked_up_in_a_thread(
    slow_log: SqliteLog, asked: Asked
) -> None:
    assert await slow_log._find("missing") is None
    asked.count = 0
    assert await slow_log._find("missing") is None
    assert asked.count == 1


async def test_readers_of_the_last_events_load_nothing_else_unless_there_are_several(
    tmp_path: Path,
) -> None:
    log = await opened_again(tmp_path / "log.db")
    sizes = []
    for _ in range(3):
        assert await piece(log, len(FRAMES) - 2) == b"".join(FRAMES[-2:])
        sizes.append(log.runs["run"].tail.size_bytes)
    assert sizes == [0, 0, sum(map(len, FRAMES))]
    await log.aclose()


@pytest.mark.parametrize("why", ["it is large", "there is no room", "a chunk is damaged"])
async def test_a_run_that_cannot_be_loaded_is_read_slice_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    file, sizes, expected = tmp_path / "log.db", SIZES, b"".join(FRAMES)
    if why == "it is large":
        monkeypatch.setattr(stored_frames, "LOAD_BYTES", len(expected) - 1)
    elif why == "there is no room":
        sizes = replace(SIZES, closed_runs_bytes=len(expected))
    log = await opened_again(file, sizes)
    if why == "a chunk is damaged":
        with closing(sqlite3.connect(file)) as connection, connection:
            (damaged,) = connection.execute(
                "SELECT max(first_seq) FROM log_chunk WHERE first_seq < 150"
            ).fetchone()
            connection.execute(
                "UPDATE log_chunk SET frames = x'00' WHERE first_seq = ?", (damaged,)
            )
        with pytest.raises(LogDamagedError, match=f"after event {damaged - 1}"):
            await all_slices(log)
        expected = FRAMES[-1]
    async with log.follow("run") as tail:
        after = 0 if expected != FRAMES[-1] else len(FRAMES) - 1
        for _ in range(3):
            assert b"".join(await all_slices(log, after)) == expected
        assert tail.size_bytes == 0
    await log.aclose()


async def test_a_trimmed_run_is_loaded_without_the_events_that_are_gone(tmp_path: Path) -> None:
    log = await opened_again(tmp_path / "log.db")
    async with log.follow("run") as tail:
        await log.trim("run", Seq(101))  # In the middle of a chunk.
        assert (await piece(log, 150)).startswith(FRAMES[150])
        assert (await piece(log, 150)).startswith(FRAMES[150])
        await folded(log)
        assert b"".join(await all_slices(log, 100)) == b"".join(FRAMES[100:])
        assert tail.first_seq == 101
        assert b"".join(await all_slices(log, 100)) == b"".join(FRAMES[100:])
        await log.trim("run", Seq(150))
        assert b"".join(await all_slices(log, 149)) == b"".join(FRAMES[149:])
    await log.aclose()
