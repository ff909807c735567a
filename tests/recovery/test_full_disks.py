"""Full disks, and write-ahead logs that must not grow without bound."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from reattach.domain.clock import SystemClock
from reattach.domain.ids import Seq, Token
from reattach.domain.limits import RECORDS_WAL_BYTES
from reattach.log.sqlite.log import Sizes, SqliteLog
from reattach.records.records import Records
from reattach.testing.conformance.log_samples import append
from tests.recovery.wal import wal_of
from tests.support.stores import eventually

PROCESS = Path(__file__).with_name("full_disk_process.py")
SMALL = Sizes(
    journal_bytes=20_000, closed_runs_bytes=0, checkpoint_bytes=100_000, idle_seconds=3600
)


def wal_bytes(file: Path) -> int:
    wal = wal_of(file)
    return wal.stat().st_size if wal.exists() else 0


def beginnings(file: Path) -> int:
    """Return how often the WAL began anew, which its header counts."""
    return int.from_bytes(wal_of(file).read_bytes()[12:16], "big")


@pytest.mark.promise("P7")
@pytest.mark.parametrize("store", ["events", "records"])
async def test_a_store_continues_after_its_wal_has_filled_the_disk(
    store: str, tmp_path: Path
) -> None:
    """C12: several times as much is written as a file may hold, and deleted again."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(PROCESS), store, str(tmp_path / f"{store}.db")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    assert int(said) > 0


async def test_the_wal_of_the_events_is_truncated_when_nothing_is_written(tmp_path: Path) -> None:
    """C12: it is far below the size at which it is emptied on a busy server."""
    file = tmp_path / "events.db"
    log = await SqliteLog.open_file(file, sizes=Sizes(idle_seconds=0.02))
    for number in range(3):
        await log.open(f"run-{number}", Token(1))
        await append(log, f"run-{number}", Token(1), 1, [b"x" * 1000])
        await eventually(lambda: asyncio.to_thread(lambda: wal_bytes(file) == 0))
    await log.aclose()


async def test_the_wal_of_the_events_stays_bounded_by_its_true_size(tmp_path: Path) -> None:
    """C12: what is deleted is written to the WAL too, and small commits take whole pages."""
    file = tmp_path / "events.db"
    log = await SqliteLog.open_file(file, sizes=SMALL)

    async def is_bounded() -> bool:
        return await asyncio.to_thread(wal_bytes, file) <= 2 * SMALL.checkpoint_bytes

    for number in range(40):
        await log.open(f"run-{number}", Token(1))
        await append(log, f"run-{number}", Token(1), 1, [b"x" * 500] * 100, close=True)
        await eventually(is_bounded)
    for number in range(40):
        await log.delete(f"run-{number}")
        await eventually(is_bounded)
    await log.aclose()


async def test_the_wal_of_busy_events_begins_anew_without_being_truncated(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    sizes = Sizes(journal_bytes=2**30, checkpoint_bytes=2**20, idle_seconds=3600)
    log = await SqliteLog.open_file(file, sizes=sizes)
    writer = await log.open("run", Token(1))

    async def append_some() -> None:
        await writer.append(Seq((await log.head("run")).last_seq + 1), [b"x" * 2000])

    begun = await asyncio.to_thread(beginnings, file)
    for number in range(1, 4):
        for _ in range(30):
            await append_some()

        async def has_begun_anew(expected: int = begun + number) -> bool:
            await append_some()
            return await asyncio.to_thread(beginnings, file) >= expected

        await eventually(has_begun_anew)
        assert 200_000 < await asyncio.to_thread(wal_bytes, file) < 2**20
    await log.aclose()


async def test_a_new_process_does_not_truncate_its_wal_while_answers_stream(tmp_path: Path) -> None:
    """C12: emptying it holds appends up, so it waits for silence, for its size, or for its age."""
    file = tmp_path / "events.db"
    sizes = Sizes(journal_bytes=2**30, checkpoint_bytes=2**20, idle_seconds=3600)
    log = await SqliteLog.open_file(file, sizes=sizes)
    await log.open("run", Token(1))
    seen = []
    for seq in range(1, 81):
        await append(log, "run", Token(1), seq, [b"x" * 2000])
        seen.append(await asyncio.to_thread(wal_bytes, file))
    assert seen == sorted(seen)
    await log.aclose()


async def test_a_reader_of_the_events_delays_the_truncation_and_not_the_appends(
    tmp_path: Path,
) -> None:
    """C12: somebody makes a backup meanwhile."""
    file = tmp_path / "events.db"
    log = await SqliteLog.open_file(file, sizes=Sizes(idle_seconds=0.02))
    await log.open("run", Token(1))

    def begin() -> sqlite3.Connection:
        reader = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM log_run").fetchall()
        return reader

    with closing(await asyncio.to_thread(begin)) as reader:
        for seq in range(1, 40):
            await append(log, "run", Token(1), seq, [b"x" * 1000])
        assert await asyncio.to_thread(wal_bytes, file) > 0
        await asyncio.to_thread(reader.execute, "COMMIT")
    await append(log, "run", Token(1), 40, [b"x"])
    await eventually(lambda: asyncio.to_thread(lambda: wal_bytes(file) == 0))
    await log.aclose()


FILL = "INSERT INTO blocks_copy VALUES (zeroblob(1000000))"


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    records = await Records.open(f"sqlite:///{tmp_path / 'records.db'}", clock=SystemClock())
    yield records
    await records.aclose()


async def test_the_wal_of_the_records_is_truncated_once_its_readers_are_gone(
    records: Records, tmp_path: Path
) -> None:
    """C12: while somebody reads, it cannot begin anew."""
    file = tmp_path / "records.db"
    database = records._database
    may_end = threading.Event()

    async def write(statement: str) -> None:
        await database.in_write(lambda connection: connection.execute(text(statement)))

    def read(connection: Connection) -> None:
        connection.execute(text("SELECT count(*) FROM blocks_copy"))
        may_end.wait()

    await write("CREATE TABLE blocks_copy (content BLOB)")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.in_read(read))
        while await asyncio.to_thread(wal_bytes, file) <= RECORDS_WAL_BYTES:
            await write(FILL)
        may_end.set()

    async def is_small_again() -> bool:
        await write(FILL)
        return await asyncio.to_thread(wal_bytes, file) < RECORDS_WAL_BYTES // 2

    await eventually(is_small_again)
    await records.tidy()
    assert await asyncio.to_thread(wal_bytes, file) == 0
