from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from reattach.domain.errors import ConflictError, InvalidArgumentError, StoreUnavailableError
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.records import Records
from tests.support.record_samples import (
    OURS,
    World,
    a_key,
    a_run,
    a_settlement,
    an_agent,
    at,
    first,
    ids,
)

LOG = {"abandoned_at": at(0)}


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = await Database.open(url)
    yield database
    await database.aclose()


async def written(database: Database) -> list[str]:
    rows = await database.rows(select(schema.abandoned_logs.c.run_id))
    return sorted(row["run_id"] for row in rows)


def insert_all(connection: Connection, run_ids: Iterable[str]) -> None:
    for run_id in run_ids:
        connection.execute(insert(schema.abandoned_logs), {"run_id": run_id, **LOG})


async def write(database: Database, *run_ids: str) -> None:
    await database.in_write(insert_all, run_ids)


@dataclass
class Pause:
    """A function of a transaction that writes, and then stops until it is released."""

    started: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __call__(self, connection: Connection, *run_ids: str) -> None:
        insert_all(connection, run_ids)
        self.started.set()
        assert self.released.wait(30)


async def test_a_write_is_kept_over_a_reopening(url: str) -> None:
    for run_id in ("a", "b"):
        database = await Database.open(url)
        await write(database, run_id)
        await database.aclose()
    database = await Database.open(url)
    assert await written(database) == ["a", "b"]
    await database.aclose()


async def test_reads_see_what_was_committed_and_wait_for_no_write(database: Database) -> None:
    await write(database, "a")
    pause = Pause()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(database.in_write(pause, "b"))
        await asyncio.to_thread(pause.started.wait)
        found = await asyncio.gather(*(written(database) for _ in range(50)))
        assert all(run_ids == ["a"] for run_ids in found)
        pause.released.set()
    assert await written(database) == ["a", "b"]


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_work_that_comes_together_shares_a_transaction_and_keeps_its_own_result(
    database: Database, kind: str
) -> None:
    transactions = {"read": database.reads, "write": database.writes}[kind]
    run = {"read": database.in_grouped_read, "write": database.in_grouped_write}[kind]
    visits = 0
    visit = transactions.run

    async def counted(work: Callable[[Connection], Any]) -> Any:
        nonlocal visits
        visits += 1
        return await visit(work)

    def work(connection: Connection, number: int) -> int:
        if kind == "write":
            insert_all(connection, [f"{number:02}"])
        if number == 7:
            raise ZeroDivisionError
        factor: int = connection.scalars(select(1)).one()
        return number * factor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transactions, "run", counted)
        async with asyncio.timeout(30):
            sound = await asyncio.gather(*(run(work, number) for number in range(7)))
            assert visits == 2  # The first one did not wait for the others.
            mixed = await asyncio.gather(
                *(run(work, number) for number in (10, 7, 8, 9)), return_exceptions=True
            )
    assert sound == list(range(7))
    assert isinstance(mixed.pop(1), ZeroDivisionError)
    assert mixed == [10, 8, 9]
    expected = [f"{number:02}" for number in range(11) if number != 7]
    assert await written(database) == (expected if kind == "write" else [])


async def test_a_cancelled_caller_of_grouped_work_waits_for_its_end(database: Database) -> None:
    pause = Pause()
    async with asyncio.timeout(30):
        writing = asyncio.create_task(database.in_grouped_write(pause, "a"))
        await asyncio.to_thread(pause.started.wait)
        writing.cancel()
        pause.released.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await written(database) == ["a"]


async def test_a_read_sees_one_state_while_others_write(database: Database) -> None:
    started, released = threading.Event(), threading.Event()
    await write(database, "a")

    def read_twice(connection: Connection) -> list[list[str]]:
        wanted = select(schema.abandoned_logs.c.run_id)
        before = list(connection.scalars(wanted))
        started.set()
        assert released.wait(30)
        return [before, list(connection.scalars(wanted))]

    async with asyncio.timeout(30):
        reading = asyncio.create_task(database.in_read(read_twice))
        await asyncio.to_thread(started.wait)
        await write(database, "b")
        released.set()
        assert await reading == [["a"], ["a"]]
    assert await written(database) == ["a", "b"]


async def test_a_write_that_raises_changes_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        insert_all(connection, ("a",))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.in_write(fail)
    assert await written(database) == []
    await write(database, "b")
    assert await written(database) == ["b"]


async def test_a_broken_constraint_is_a_conflict_that_reveals_no_sql(database: Database) -> None:
    await write(database, "a")
    with pytest.raises(ConflictError) as refused:
        await write(database, "b", "a")
    assert isinstance(refused.value.__cause__, IntegrityError)
    for word in ("abandoned_logs", "UNIQUE", "INSERT", "sqlite", "psycopg", "postgres"):
        assert word.lower() not in str(refused.value).lower()
    assert await written(database) == ["a"]


async def test_reads_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be read or written"):
        await database.in_read(insert_all, ("a",))
    assert await written(database) == []


async def test_a_closed_database_runs_no_transaction(url: str) -> None:
    database = await Database.open(url)
    await database.aclose()
    for transaction in (database.in_read, database.in_write):
        with pytest.raises(StoreUnavailableError):
            await transaction(insert_all, ())


async def test_many_writes_at_once_are_all_kept(database: Database) -> None:
    names = [str(number) for number in range(40)]
    async with asyncio.timeout(30):
        await asyncio.gather(*(write(database, name) for name in names))
    assert await written(database) == sorted(names)


async def test_a_write_that_is_cancelled_anywhere_is_atomic_and_blocks_nobody(
    database: Database,
) -> None:
    # Each task is cancelled after another number of ticks of the event loop.
    for ticks in range(60):
        task = asyncio.create_task(write(database, f"{ticks}-a", f"{ticks}-b"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=30)
        assert task.done()
    async with asyncio.timeout(30):
        await write(database, "last")
    halves = [run_id.partition("-") for run_id in await written(database)]
    whole = {number for number, _, half in halves if half == "a"}
    assert whole == {number for number, _, half in halves if half == "b"}


async def test_a_cancelled_caller_waits_for_the_end_of_its_write(database: Database) -> None:
    pause = Pause()
    async with asyncio.timeout(30):
        task = asyncio.create_task(database.in_write(pause, "x"))
        await asyncio.to_thread(pause.started.wait)
        waiting = asyncio.create_task(write(database, "y"))
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        pause.released.set()
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await written(database) == ["x", "y"]


async def test_closing_waits_for_a_cancelled_transaction(url: str) -> None:
    database = await Database.open(url)
    task = asyncio.create_task(write(database, "a", "b"))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(30):
        await database.aclose()
        await asyncio.wait([task])


@pytest.mark.promise("P9")
async def test_a_send_that_is_cancelled_and_repeated_makes_one_run(world: World) -> None:
    runs = world.records.runs
    for ticks in range(0, 60, 3):
        key = a_key(f"otid-{ticks}")
        task = asyncio.create_task(runs.create(OURS, a_run(world.thread), key, key.otids))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=30)
        outcome = await runs.create(OURS, a_run(world.thread), key, key.otids)
        assert await runs.newest_by_otid(OURS, key.otids[0]) == outcome.run
        assert ids(await runs.list(OURS, first(), active_only=True)) == [outcome.run.id]
        assert await runs.settle(outcome.run.id, a_settlement())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "\ud800"},
        {"metadata": {"x": "\ud800"}},
        {"metadata": {"x": float("nan")}},
        {"context_window_limit": 2**63},
    ],
    ids=["surrogate", "surrogate in JSON", "NaN in JSON", "number"],
)
async def test_a_value_that_cannot_be_stored_is_an_invalid_argument(
    records: Records, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        await records.agents.create(OURS, an_agent(**wrong))
    assert await records.agents.list(OURS, first()) == []


async def test_a_time_without_zone_is_an_error_of_the_program(records: Records) -> None:
    with pytest.raises(Exception, match="needs a time zone"):
        await records.agents.create(OURS, an_agent(created_at=at(0).replace(tzinfo=None)))
