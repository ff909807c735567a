"""Ended runs of a SQLite log leave its journal together, because each time wakes the thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import Seq, Token
from reattach.log.sqlite import folding, tables
from reattach.log.sqlite.log import Sizes, SqliteLog
from tests.support.live_server import WAIT_SECONDS


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of runs that were folded, by transaction."""
    counts: list[int] = []
    fold = tables.fold

    def counted(connection: sqlite3.Connection, runs: Sequence[Any]) -> None:
        fold(connection, runs)
        counts.append(len(runs))

    monkeypatch.setattr(tables, "fold", counted)
    return counts


async def end_runs(log: SqliteLog, numbers: range) -> None:
    for number in numbers:
        writer = await log.open(f"run-{number}", Token(1))
        await writer.append(Seq(1), [b"data: x\n\n"], close=True)


async def test_an_ended_run_is_folded_after_a_moment(tmp_path: Path, folded: list[int]) -> None:
    log = await SqliteLog.open_file(tmp_path / "log.db", sizes=Sizes(fold_seconds=0.01))
    await end_runs(log, range(1))
    async with asyncio.timeout(WAIT_SECONDS):
        while not folded:
            await asyncio.sleep(0.001)
    assert folded == [1]
    await log.aclose()


async def test_runs_that_end_soon_after_each_other_are_folded_by_one_transaction(
    tmp_path: Path, folded: list[int]
) -> None:
    sizes = Sizes(fold_seconds=WAIT_SECONDS + 1)
    log = await SqliteLog.open_file(tmp_path / "log.db", sizes=sizes)
    await end_runs(log, range(2 * folding.ENOUGH_RUNS))
    async with asyncio.timeout(WAIT_SECONDS):
        while sum(folded) <= folding.ENOUGH_RUNS:
            await asyncio.sleep(0.001)
    assert len(folded) <= 5  # The log's first write lets it look for work too.
    await log.aclose()
