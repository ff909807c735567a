from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from reattach import slow_disk
from reattach.domain.errors import FencedError, SeqMismatchError, StoreUnavailableError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Slice
from reattach.log.sqlite.log import Sizes, SqliteLog
from reattach.testing.conformance.log_samples import append

LARGE = 2**40
FRAMES = [b"%03d" % seq + b"." * 500 for seq in range(1, 201)]
SIZES = Sizes(
    chunk_bytes=2000,
    step_bytes=5000,
    journal_bytes=20_000,
    closed_runs_bytes=0,
    checkpoint_bytes=100_000,
    at_once_bytes=0,
)
"""Limits so small that upkeep has work, and every commit is made by the thread."""
AT_ONCE = replace(SIZES, at_once_bytes=5000, journal_bytes=2**20, checkpoint_bytes=2**25)
"""Small commits are made in the event loop, and upkeep has nothing to do."""


@dataclass
class Disk:
    """Faults of the statements of all connections."""

    path: Path
    broken: str | None = None
    """Prefix of the statements that fail."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when such a statement is executed."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Delays the failure until it is set."""
    busy_timeout_seconds: float = 5.0
    connections: list[sqlite3.Connection] = field(default_factory=list)
    committing: list[str] = field(default_factory=list)
    """The name of the thread of each commit, including those that failed."""
    fails_in_loop: bool = False
    """Commits of the event loop fail."""
    commit_seconds: float = 0.0
    """How long a commit takes by the clock of the writer."""
    now: float = 1000.0
    """The clock of the writer, where a test says so."""

    def monotonic(self) -> float:
        return self.now

    def connect(self, path: str) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql.startswith("INSERT INTO log_journal"):
                    thread = threading.current_thread()
                    disk.committing.append(thread.name)
                    disk.now += disk.commit_seconds
                    if disk.fails_in_loop and thread is threading.main_thread():
                        raise sqlite3.OperationalError("database is locked")
                if disk.broken is not None and sql.startswith(disk.broken):
                    disk.reached.set()
                    disk.go_on.wait(30)
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *parameters)

        connection = sqlite3.connect(
            path,
            timeout=self.busy_timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        self.connections.append(connection)
        return connection

    async def open_log(self, sizes: Sizes = SIZES) -> SqliteLog:
        return await SqliteLog.open_file(self.path, sizes=sizes, connect=self.connect)

    def wal_is_empty(self) -> bool:
        return self.path.with_name("log.db-wal").stat().st_size == 0

    def query(self, sql: str) -> Any:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchone()[0]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path / "log.db")
    disk.go_on.set()
    return disk


@pytest.fixture
async def log(disk: Disk) -> AsyncIterator[SqliteLog]:
    log = await disk.open_log()
    yield log
    disk.broken = None
    await log.aclose()


async def frames_of(log: SqliteLog, run_id: str) -> bytes:
    return (await log.read(run_id, Seq(0), max_bytes=LARGE, max_events=LARGE)).frames


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


@pytest.mark.promise("P2")
async def test_appends_to_a_full_disk_are_refused_and_resume_when_there_is_space(
    disk: Disk, log: SqliteLog
) -> None:
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES[:2])
    connection = disk.connections[0]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    assert connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0] == pages
    async with log.follow("run") as tail:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError) as caught:
                await append(log, "run", Token(1), 3, FRAMES[2:100], close=True)
            assert "full" in str(caught.value.__cause__)
            assert "full" not in caught.value.detail
            assert (tail.last_seq, tail.ended) == (2, False)
            assert await log.head("run") == Head(Seq(1), Seq(2), closed=False)
        connection.execute("PRAGMA max_page_count = 1000000")
        await append(log, "run", Token(1), 3, FRAMES[2:100])
        assert tail.last_seq == 100
    await log.aclose()
    log = await disk.open_log()
    assert await log.head("run") == Head(Seq(1), Seq(100), closed=False)
    assert await frames_of(log, "run") == b"".join(FRAMES[:100])
    await log.aclose()


@pytest.fixture
async def at_once(disk: Disk) -> AsyncIterator[SqliteLog]:
    """A log with a run, whose small commits are made in the event loop."""
    log = await disk.open_log(AT_ONCE)
    async with asyncio.timeout(30):
        while LOOP not in disk.committing:  # The thread has work after the start.
            await log.open(f"run-{len(disk.committing)}", Token(1))
    await log.open("run", Token(1))
    disk.committing.clear()
    yield log
    await log.aclose()


LOOP, THREAD = threading.main_thread().name, "reattach-log-writer"


async def test_only_commits_that_are_small_are_made_in_the_event_loop(
    disk: Disk, at_once: SqliteLog
) -> None:
    await append(at_once, "run", Token(1), 1, FRAMES[:2])
    await append(at_once, "run", Token(1), 3, FRAMES[2:20])
    await append(at_once, "run", Token(1), 21, FRAMES[20:22])
    await at_once.delete("run")
    assert disk.committing == [LOOP, THREAD, LOOP, THREAD]


@pytest.mark.promise("P2")
async def test_small_commits_wait_for_a_large_one_before_them(
    disk: Disk, at_once: SqliteLog
) -> None:
    disk.broken = "INSERT INTO log_journal"
    disk.go_on.clear()
    async with asyncio.timeout(30):
        large = asyncio.create_task(append(at_once, "run", Token(1), 1, FRAMES[:20]))
        await asyncio.to_thread(disk.reached.wait)
        small = asyncio.create_task(append(at_once, "run", Token(1), 21, FRAMES[20:22]))
        await asyncio.sleep(0)
        disk.broken = None
        disk.go_on.set()
        results = await asyncio.gather(large, small, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailableError}
    assert disk.committing == [THREAD]
    assert await at_once.head("run") == Head(Seq(1), Seq(0), closed=False)


async def test_a_commit_that_fails_in_the_event_loop_is_made_by_the_thread(
    disk: Disk, at_once: SqliteLog
) -> None:
    disk.fails_in_loop = True
    await append(at_once, "run", Token(1), 1, FRAMES[:2])
    assert disk.committing == [LOOP, THREAD]
    await at_once.aclose()
    log = await disk.open_log()
    assert await frames_of(log, "run") == b"".join(FRAMES[:2])
    await log.aclose()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_slow_disk_takes_a_hundredth_of_the_event_loops_time(
    disk: Disk, at_once: SqliteLog, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(slow_disk, "time", disk)

    async def append_one() -> str:
        """Append, and return the name of the thread that tried it first."""
        disk.committing.clear()
        seq = (await at_once.head("run")).last_seq + 1
        await append(at_once, "run", Token(1), seq, FRAMES[:1])
        return disk.committing[0]

    disk.fails_in_loop = fails
    disk.commit_seconds = 0.1
    assert await append_one() == LOOP
    disk.now += 9.7
    assert await append_one() == THREAD
    disk.now += 0.3
    disk.commit_seconds = 5.0
    assert await append_one() == LOOP
    disk.now += 54.0
    assert await append_one() == THREAD
    disk.now += 2.0
    assert await append_one() == LOOP


async def test_the_event_loop_does_not_begin_the_wal_anew(disk: Disk) -> None:
    """SQLite waits then until the disk has the head of the WAL, whatever the durability."""
    log = await disk.open_log(replace(AT_ONCE, idle_seconds=0.05))
    await log.open("run", Token(1))
    for seq in (1, 4):
        await append(log, "run", Token(1), seq, FRAMES[:1])
        await append(log, "run", Token(1), seq + 1, FRAMES[:1])
        await until(lambda: disk.wal_is_empty() and not log._writer._in_thread)
        disk.committing.clear()
        await append(log, "run", Token(1), seq + 2, FRAMES[:1])
        assert disk.committing == [THREAD]
    await log.aclose()


@pytest.mark.promise("P2")
async def test_no_commit_that_must_wait_for_the_disk_is_made_in_the_event_loop(
    disk: Disk,
) -> None:
    log = await SqliteLog.open_file(
        disk.path, durability="power", sizes=AT_ONCE, connect=disk.connect
    )
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES[:2])
    assert set(disk.committing) == {THREAD}
    await log.aclose()


@pytest.mark.promise("P2")
async def test_a_failed_commit_rolls_back_everything_after_it(disk: Disk, log: SqliteLog) -> None:
    names = ["a", "b", "c"]
    for name in names:
        await log.open(name, Token(1))
        await append(log, name, Token(1), 1, FRAMES[:1])
    disk.broken = "INSERT INTO log_journal"
    disk.go_on.clear()
    async with asyncio.timeout(30):
        first = asyncio.create_task(append(log, "a", Token(1), 2, [FRAMES[1]]))
        await asyncio.to_thread(disk.reached.wait)
        tried = [
            append(log, "a", Token(1), 3, FRAMES[2:4]),
            append(log, "a", Token(1), 5, [], close=True),
        ]
        tried += [append(log, name, Token(1), 2, FRAMES[1:4]) for name in names[1:]]
        others = [asyncio.create_task(each) for each in tried]
        await asyncio.sleep(0)
        disk.broken = None
        disk.go_on.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailableError}
    for name in names:
        assert await log.head(name) == Head(Seq(1), Seq(1), closed=False)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for seq in (2, 3, 4):
            for name in names:
                group.create_task(append(log, name, Token(1), seq, [FRAMES[seq - 1]]))
    await log.aclose()
    log = await disk.open_log()
    for name in names:
        assert await frames_of(log, name) == b"".join(FRAMES[:4])
    await log.aclose()


async def test_opening_and_deleting_on_a_broken_disk_change_nothing(
    disk: Disk, log: SqliteLog
) -> None:
    await log.open("old", Token(1))
    await append(log, "old", Token(1), 1, FRAMES[:3])
    await log.open("closed", Token(1))
    await append(log, "closed", Token(1), 1, FRAMES[:3], close=True)
    disk.broken = "INSERT INTO log_journal"
    for change in (
        log.open("new", Token(1)),
        log.open("old", Token(2)),
        log.open("closed", Token(2)),
        log.trim("old", Seq(3)),
        log.delete("old"),
    ):
        with pytest.raises(StoreUnavailableError):
            await change
    disk.broken = None
    assert (await log.open("new", Token(1))).head == Head(Seq(1), Seq(0), closed=False)
    assert (await log.open("old", Token(1))).head == Head(Seq(1), Seq(3), closed=False)
    await append(log, "old", Token(1), 4, FRAMES[3:4])
    assert (await log.open("closed", Token(1))).head == Head(Seq(1), Seq(3), closed=True)
    assert await frames_of(log, "old") == b"".join(FRAMES[:4])


@pytest.mark.promise("P4")
async def test_failed_upkeep_does_not_disturb_appends_and_is_repeated(
    disk: Disk, log: SqliteLog
) -> None:
    disk.broken = "INSERT INTO log_chunk"
    for name in "a", "b":
        await log.open(name, Token(1))
        for seq, frame in enumerate(FRAMES, 1):
            await append(log, name, Token(1), seq, [frame], close=seq == len(FRAMES))
    assert await frames_of(log, "a") == b"".join(FRAMES)
    assert disk.query("SELECT count(*) FROM log_chunk") == 0
    disk.broken = None
    await until(lambda: disk.query("SELECT count(*) FROM log_run WHERE closed") == 2)
    await until(lambda: disk.query("SELECT count(*) FROM log_journal") < 5)
    assert await frames_of(log, "b") == b"".join(FRAMES)


async def test_folded_runs_are_not_folded_again_after_reopening(disk: Disk, log: SqliteLog) -> None:
    await log.open("first", Token(1))
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES[:20], close=True)
    await until(lambda: disk.query("SELECT count(*) FROM log_run WHERE closed") == 1)
    assert disk.query("SELECT count(*) FROM log_journal") > 0
    await log.aclose()
    log = await disk.open_log()
    await append(log, "first", Token(1), 1, FRAMES, close=True)
    await until(lambda: disk.query("SELECT count(*) FROM log_run WHERE closed") == 2)
    await until(lambda: disk.query("SELECT count(*) FROM log_journal") == 0)
    assert await frames_of(log, "run") == b"".join(FRAMES[:20])
    await log.aclose()


@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
async def test_a_closed_log_that_is_only_on_disk_keeps_its_new_token_and_first_seq(
    disk: Disk, log: SqliteLog
) -> None:
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES, close=True)
    await until(lambda: disk.query("SELECT count(*) FROM log_journal") == 0)
    disk.broken = "INSERT INTO log_run"
    await log.open("run", Token(5))
    await log.trim("run", Seq(50))
    await log.aclose()
    log = await disk.open_log()
    with pytest.raises(FencedError):
        await log.open("run", Token(4))
    assert await log.head("run") == Head(Seq(50), Seq(len(FRAMES)), closed=True)
    disk.broken = None
    await until(lambda: disk.query("SELECT token FROM log_run") == 5)
    await until(lambda: disk.query("SELECT count(*) FROM log_chunk WHERE last_seq < 50") == 0)
    cut = await log.read("run", Seq(49), max_bytes=LARGE, max_events=LARGE)
    assert cut.frames == b"".join(FRAMES[49:])
    await log.aclose()


async def test_the_journal_of_a_long_open_run_stays_bounded(disk: Disk, log: SqliteLog) -> None:
    await log.open("long", Token(1))
    await log.open("idle", Token(1))
    await append(log, "idle", Token(1), 1, FRAMES[:1])
    for turn in range(10):
        for seq, frame in enumerate(FRAMES, turn * len(FRAMES) + 1):
            await append(log, "long", Token(1), seq, [frame])
    journal_bytes = "SELECT coalesce(sum(length(batch)), 0) FROM log_journal"
    await until(lambda: disk.query(journal_bytes) <= SIZES.journal_bytes)
    await log.aclose()
    log = await disk.open_log()
    assert await frames_of(log, "long") == b"".join(FRAMES * 10)
    assert await frames_of(log, "idle") == FRAMES[0]
    await log.aclose()


@pytest.mark.promise("P1")
async def test_an_open_run_reads_across_its_chunks_and_its_journal_after_a_restart(
    disk: Disk, log: SqliteLog
) -> None:
    await log.open("run", Token(1))
    for seq, frame in enumerate(FRAMES, 1):
        await append(log, "run", Token(1), seq, [frame])
    journal_bytes = "SELECT coalesce(sum(length(batch)), 0) FROM log_journal"
    await until(lambda: disk.query(journal_bytes) <= SIZES.journal_bytes)
    await append(log, "run", Token(1), 201, FRAMES[:3])
    await log.aclose()
    log = await disk.open_log()
    frames = FRAMES + FRAMES[:3]
    async with log.follow("run") as tail:
        begin = tail.first_seq
    assert 10 < begin <= 201
    assert await frames_of(log, "run") == b"".join(frames)
    after = begin - 5
    for count in range(1, 8):
        last_seq = min(after + count, 203)
        joined = b"".join(frames[after:last_seq])
        assert await log.read("run", after, max_bytes=LARGE, max_events=count) == Slice(
            after + 1, Seq(last_seq), joined
        )
        for spare_bytes in 0, 1:
            assert await log.read(
                "run", after, max_bytes=len(joined) + spare_bytes, max_events=LARGE
            ) == Slice(after + 1, Seq(last_seq), joined)
    repeated = frames[after : after + 7]
    await append(log, "run", Token(1), after + 1, repeated)
    for changed in 0, 6:
        others = [b"x" if index == changed else frame for index, frame in enumerate(repeated)]
        with pytest.raises(SeqMismatchError):
            await append(log, "run", Token(1), after + 1, others)
    await append(log, "run", Token(1), 204, [FRAMES[3]], close=True)
    assert await frames_of(log, "run") == b"".join([*frames, FRAMES[3]])
    await log.aclose()


@pytest.mark.promise("P1")
async def test_the_second_of_two_appends_in_flight_can_be_repeated(log: SqliteLog) -> None:
    await log.open("run", Token(1))
    first = append(log, "run", Token(1), 1, FRAMES[:1])
    second = [append(log, "run", Token(1), 2, FRAMES[1:2], close=True) for _ in range(2)]
    await asyncio.gather(first, *second)
    assert await frames_of(log, "run") == b"".join(FRAMES[:2])


async def test_a_deleted_run_leaves_nothing_in_the_file(disk: Disk, log: SqliteLog) -> None:
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES, close=True)
    await until(lambda: disk.query("SELECT count(*) FROM log_run WHERE closed") == 1)
    await log.delete("run")
    for table in "log_run", "log_chunk", "log_garbage":
        await until(lambda table=table: disk.query(f"SELECT count(*) FROM {table}") == 0)  # type: ignore[misc]


async def test_an_append_waits_for_another_connections_transaction(
    disk: Disk, log: SqliteLog
) -> None:
    await log.open("run", Token(1))
    with closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        appending = asyncio.create_task(append(log, "run", Token(1), 1, FRAMES[:1]))
        done, _ = await asyncio.wait([appending], timeout=0.05)
        assert not done
        assert await log.head("run") == Head(Seq(1), Seq(0), closed=False)
        other.execute("COMMIT")
        async with asyncio.timeout(30):
            await appending
    assert await log.head("run") == Head(Seq(1), Seq(1), closed=False)


async def test_an_append_that_waited_too_long_is_refused_and_can_be_repeated(disk: Disk) -> None:
    disk.busy_timeout_seconds = 0.05
    log = await disk.open_log()
    await log.open("run", Token(1))
    with closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError):
            await append(log, "run", Token(1), 1, FRAMES[:1])
        other.execute("COMMIT")
    await append(log, "run", Token(1), 1, FRAMES[:1])
    assert await log.head("run") == Head(Seq(1), Seq(1), closed=False)
    await log.aclose()


@pytest.mark.promise("P5")
async def test_a_log_that_lost_a_part_raises_an_error(disk: Disk, log: SqliteLog) -> None:
    await log.open("run", Token(1))
    await append(log, "run", Token(1), 1, FRAMES, close=True)
    await until(lambda: disk.query("SELECT count(*) FROM log_run WHERE closed") == 1)
    with closing(sqlite3.connect(disk.path)) as other, other:
        other.execute("DELETE FROM log_chunk WHERE first_seq <= 100 AND last_seq >= 100")
    assert (await log.read("run", Seq(0), max_bytes=1, max_events=1)).frames == FRAMES[0]
    with pytest.raises(StoreUnavailableError, match="damaged after event 99"):
        await log.read("run", Seq(99), max_bytes=LARGE, max_events=LARGE)
