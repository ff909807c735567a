"""Short transactions that write to SQLite in the event loop, and in a thread where that waits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
from sqlalchemy import Connection, delete, func, insert, select

from reattach.domain.errors import ConflictError, StoreUnavailableError
from reattach.domain.limits import RECORDS_WAL_BYTES
from reattach.records.database import schema, sqlite
from reattach.records.database.database import Database
from reattach.records.database.prepared import PreparedStatement, Steps, driver_of
from reattach.records.database.transactions import Transactions
from tests.support.record_samples import NOON

pytestmark = pytest.mark.usefixtures("nothing_is_slow")

T = TypeVar("T")
P = ParamSpec("P")

_INSERT = PreparedStatement(insert(schema.abandoned_logs), "run_id", "abandoned_at")
_COUNT = PreparedStatement(select(func.count()).select_from(schema.abandoned_logs))


@pytest.fixture
async def database(database: Database) -> Database:
    await database.in_write(begin_wal)
    return database


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every visit to a thread from now on."""
    made: list[object] = []
    visit = Transactions.visit

    async def counted(self: Transactions, work: Any) -> Any:
        made.append(work)
        return await visit(self, work)

    monkeypatch.setattr(Transactions, "visit", counted)
    return made


def begin_wal(connection: Connection) -> None:
    """Let the WAL have pages that are not in the database."""
    add(connection)
    connection.execute(delete(schema.abandoned_logs))


def add(connection: Connection, run_id: str = "run") -> str:
    _INSERT.run(connection, {"run_id": run_id, "abandoned_at": NOON})
    return run_id


def count(connection: Connection) -> int:
    found: int = _COUNT.value(connection, {})
    return found


def in_one_step(
    work: Callable[Concatenate[Connection, P], T],
) -> Callable[Concatenate[Connection, P], Steps[T]]:
    """Return the function as a transaction that executes its statements by itself."""

    def begin(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        yield from ()
        return work(connection, *args, **kwargs)

    return begin


async def test_a_short_write_is_committed_without_a_thread(
    database: Database, path: Path, visits: list[object]
) -> None:
    assert await database.in_short_write(in_one_step(add), "one") == "one"
    assert await database.in_single_write(_INSERT, {"run_id": "two", "abandoned_at": NOON}) == 1
    assert not visits
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM abandoned_logs").fetchone() == (2,)
    other.close()


@pytest.mark.parametrize("beginning", [True, False])
async def test_a_commit_that_waits_for_the_disk_is_made_in_a_thread(
    path: Path, visits: list[object], *, beginning: bool
) -> None:
    """At the beginning of a WAL, and each one with ``durability=power``."""
    durability: sqlite.Durability = "process" if beginning else "power"
    database = await Database.open(f"sqlite:///{path}", durability=durability)
    if not beginning:
        await database.in_write(begin_wal)
        visits.clear()
    await database.in_short_write(in_one_step(add))
    assert len(visits) == 1
    await database.aclose()


async def test_a_short_write_after_the_wal_was_emptied_is_made_in_a_thread(
    database: Database, visits: list[object]
) -> None:
    await database.in_short_write(in_one_step(add), "one")
    await database.tidy()
    visits.clear()
    await database.in_short_write(in_one_step(add), "two")
    await database.in_short_write(in_one_step(add), "three")
    assert len(visits) == 1


async def test_a_short_write_waits_for_another_process_in_a_thread(
    database: Database, path: Path, visits: list[object]
) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(database.in_short_write(in_one_step(add)))
    await asyncio.sleep(0)
    assert len(visits) == 1
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(30):
        await waiting


@pytest.mark.parametrize(("size", "threads"), [(100, 0), (sqlite.LOOP_VALUE_BYTES + 1, 1)])
async def test_a_large_value_is_written_in_a_thread(
    database: Database, visits: list[object], size: int, threads: int
) -> None:
    assert len(await database.in_short_write(in_one_step(add), "r" * size)) == size
    assert len(visits) == threads
    assert await database.in_read(count) == 1


async def test_a_short_write_that_is_refused_changes_nothing(
    database: Database, visits: list[object]
) -> None:
    def refuse(connection: Connection) -> None:
        add(connection)
        raise ConflictError("It is taken.")

    with pytest.raises(ConflictError, match="It is taken"):
        await database.in_short_write(in_one_step(refuse))
    assert not visits
    assert await database.in_short_read(in_one_step(count)) == 0


async def test_a_short_write_that_breaks_a_constraint_is_a_conflict(database: Database) -> None:
    await database.in_short_write(in_one_step(add))
    with pytest.raises(ConflictError):
        await database.in_short_write(in_one_step(add))
    assert await database.in_short_read(in_one_step(count)) == 1


async def test_a_fault_in_a_short_write_is_raised_and_changes_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        add(connection)
        raise RuntimeError("A fault.")

    with pytest.raises(RuntimeError, match=r"A fault\."):
        await database.in_short_write(in_one_step(fail))
    assert await database.in_short_read(in_one_step(count)) == 0


async def test_a_failed_commit_in_the_event_loop_is_repeated_in_a_thread(
    database: Database, visits: list[object]
) -> None:
    await database.in_short_write(in_one_step(add), "one")

    def fill(connection: Connection) -> None:
        if not visits:
            driver_of(connection).execute("PRAGMA max_page_count = 1")
            for number in range(100):
                add(connection, f"{number} {'r' * 4000}")
        add(connection, "two")

    await database.in_short_write(in_one_step(fill))
    assert len(visits) == 1
    assert await database.in_read(count) == 2


class Clock:
    """The monotonic clock, in which one kind of statements takes 0.2 s."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def attend(self, connection: Connection, slow: str) -> None:
        """Let statements over this connection that begin with ``slow`` take their time."""

        def wait(statement: str) -> None:
            if statement.startswith(slow):
                self.now += 0.2

        driver_of(connection).set_trace_callback(wait)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sqlite, "COMMIT_SECONDS", 0.1)
    monkeypatch.setattr(sqlite, "SHORT_SECONDS", 0.1)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize("slow", ["INSERT", "COMMIT"])
async def test_writes_to_a_slow_disk_are_left_to_the_thread_for_a_while(
    database: Database, visits: list[object], clock: Clock, slow: str
) -> None:
    def write(connection: Connection) -> None:
        clock.attend(connection, slow)
        add(connection)

    await database.in_short_write(in_one_step(write))
    assert not visits
    clock.now += 19
    await database.in_short_write(in_one_step(add), "during the pause")
    assert len(visits) == 1
    clock.now += 2
    await database.in_short_write(in_one_step(add), "after it")
    assert len(visits) == 1


async def test_a_short_write_that_fails_slowly_is_followed_by_a_pause(
    database: Database, visits: list[object], clock: Clock
) -> None:
    def refuse(connection: Connection) -> None:
        clock.attend(connection, "SELECT")
        count(connection)
        raise ConflictError("It is taken.")

    with pytest.raises(ConflictError):
        await database.in_short_write(in_one_step(refuse))
    await database.in_short_write(in_one_step(add))
    assert len(visits) == 1


async def test_reads_of_a_slow_disk_are_left_to_a_thread_for_a_while(
    database: Database, visits: list[object], clock: Clock
) -> None:
    def read(connection: Connection) -> int:
        clock.attend(connection, "SELECT")
        return count(connection)

    assert await database.in_short_read(in_one_step(read)) == 0
    assert not visits
    clock.now += 19
    assert await database.in_short_read(in_one_step(count)) == 0
    assert await database.run_prepared(_COUNT) == [[0]]
    assert len(visits) == 2
    clock.now += 2
    assert await database.run_prepared(_COUNT) == [[0]]
    assert len(visits) == 2
    assert await database.in_short_read(in_one_step(count)) == 0
    assert len(visits) == 3


async def test_short_writes_do_not_let_the_wal_grow(
    database: Database, path: Path, visits: list[object]
) -> None:
    def write(connection: Connection, number: int) -> None:
        for place in range(20):
            add(connection, f"{number} {place} {'r' * 2000}")

    for number in range(1000):
        await database.in_short_write(in_one_step(write), number)
    assert Path(f"{path}-wal").stat().st_size <= RECORDS_WAL_BYTES
    assert 2 <= len(visits) <= 60


async def test_a_closing_database_refuses_short_writes(database: Database) -> None:
    await database.aclose()
    with pytest.raises(StoreUnavailableError, match="closing"):
        await database.in_short_write(in_one_step(add))


async def test_short_writes_are_not_counted_among_the_other_commits(
    database: Database, visits: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = database.other_commits()
    assert before is not None
    await database.in_short_write(in_one_step(add), "one")
    await database.in_single_write(_INSERT, {"run_id": "two", "abandoned_at": NOON})
    with pytest.raises(ConflictError):
        await database.in_short_write(in_one_step(add), "one")
    await database.in_short_write(in_one_step(lambda _: None))
    monkeypatch.setattr(database.writes, "try_at_once", lambda _: None)
    await database.in_short_write(in_one_step(add), "three")
    await database.in_single_write(_INSERT, {"run_id": "four", "abandoned_at": NOON})
    await database.in_short_write(in_one_step(lambda _: None))
    assert len(visits) >= 3
    assert database.other_commits() == before


async def test_all_other_writes_are_counted(database: Database, path: Path) -> None:
    states = [database.other_commits()]
    await database.in_write(add, "one")
    states.append(database.other_commits())
    await database.in_grouped_write(add, "two")
    states.append(database.other_commits())
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM abandoned_logs")
    other.close()
    states.append(database.other_commits())
    await database.in_short_write(in_one_step(add), "three")
    await database.tidy()
    await database.in_short_write(in_one_step(add), "four")
    assert None not in states
    assert len(set(states)) == len(states)
    assert database.other_commits() == states[-1]


async def test_other_commits_are_not_known_until_the_thread_has_counted_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = database.other_commits(), []
    monkeypatch.setattr(database.writes, "try_at_once", lambda _: None)
    wal = database.writes._wal  # type: ignore[attr-defined]
    monkeypatch.setattr(wal, "note_commit", lambda: during.append(database.other_commits()))
    await database.in_short_write(in_one_step(add))
    assert during == [None]
    assert database.other_commits() == before
    with pytest.raises(ConflictError):
        await database.in_short_write(in_one_step(add))
    assert database.other_commits() == before
