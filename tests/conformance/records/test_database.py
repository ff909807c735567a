from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
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
    async with database.read() as connection:
        found = await connection.scalars(select(schema.abandoned_logs.c.run_id))
        return sorted(found)


async def write(database: Database, *run_ids: str) -> None:
    async with database.write() as connection:
        for run_id in run_ids:
            await connection.execute(insert(schema.abandoned_logs), {"run_id": run_id, **LOG})


def insert_all(connection: Connection, run_ids: tuple[str, ...]) -> None:
    for run_id in run_ids:
        connection.execute(insert(schema.abandoned_logs), {"run_id": run_id, **LOG})


async def write_at_once(database: Database, *run_ids: str) -> None:
    await database.in_write(insert_all, run_ids)


Write = Callable[..., Coroutine[Any, Any, None]]
in_both_ways = pytest.mark.parametrize("write", [write, write_at_once])


async def test_a_write_is_kept_over_a_reopening(url: str) -> None:
    for run_id in ("a", "b"):
        database = await Database.open(url)
        await write(database, run_id)
        await database.aclose()
    database = await Database.open(url)
    assert await written(database) == ["a", "b"]
    await database.aclose()


async def test_the_rows_of_a_statement_are_those_that_were_committed_before_it(
    database: Database,
) -> None:
    wanted = select(schema.abandoned_logs.c.run_id)
    for count in range(3):
        async with database.write() as connection:
            await connection.execute(insert(schema.abandoned_logs), {"run_id": str(count), **LOG})
            assert len(await database.rows(wanted)) == count
        assert len(await database.rows(wanted)) == count + 1
    found = await asyncio.gather(*(database.rows(wanted) for _ in range(50)))
    assert {len(rows) for rows in found} == {3}


async def test_a_closed_database_gives_no_rows(url: str) -> None:
    database = await Database.open(url)
    await database.aclose()
    with pytest.raises(StoreUnavailableError):
        await database.rows(select(schema.abandoned_logs.c.run_id))


async def test_a_write_whose_body_raises_changes_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(insert(schema.abandoned_logs), {"run_id": "a", **LOG})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await written(database) == []
    await write(database, "b")
    assert await written(database) == ["b"]


async def test_a_write_of_one_function_that_raises_changes_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        insert_all(connection, ("a",))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.in_write(fail)
    assert await written(database) == []
    await write_at_once(database, "b")
    assert await written(database) == ["b"]


@in_both_ways
async def test_a_broken_constraint_is_a_conflict_that_tells_no_sql(
    database: Database, write: Write
) -> None:
    await write(database, "a")
    with pytest.raises(ConflictError) as refused:
        await write(database, "b", "a")
    assert isinstance(refused.value.__cause__, IntegrityError)
    for word in ("abandoned_logs", "UNIQUE", "INSERT", "sqlite", "psycopg", "postgres"):
        assert word.lower() not in str(refused.value).lower()
    assert await written(database) == ["a"]


async def test_reads_see_one_state_and_wait_for_no_write(database: Database) -> None:
    await write(database, "a")
    async with asyncio.timeout(10), database.write() as writing:
        await writing.execute(insert(schema.abandoned_logs), {"run_id": "b", **LOG})
        assert await written(database) == ["a"]
    async with asyncio.timeout(10), database.read() as reading:
        count = select(schema.abandoned_logs.c.run_id)
        before = (await reading.execute(count)).all()
        await write(database, "c")
        assert (await reading.execute(count)).all() == before
    assert await written(database) == ["a", "b", "c"]


async def test_reads_can_not_write(database: Database) -> None:
    with pytest.raises(Exception, match="records can not be read or written"):
        async with database.read() as connection:
            await connection.execute(insert(schema.abandoned_logs), {"run_id": "a", **LOG})
    assert await written(database) == []


async def test_a_read_of_one_function_can_not_write(database: Database) -> None:
    with pytest.raises(StoreUnavailableError):
        await database.in_read(insert_all, ("a",))
    assert await written(database) == []


async def test_both_ways_of_writing_take_turns(database: Database) -> None:
    numbers = range(20)
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(write(database, f"{number}") for number in numbers),
            *(write_at_once(database, f"{number}-at-once") for number in numbers),
        )
    assert len(await written(database)) == 40


async def test_a_closed_database_does_no_function(url: str) -> None:
    database = await Database.open(url)
    await database.aclose()
    with pytest.raises(StoreUnavailableError):
        await database.in_read(insert_all, ())
    with pytest.raises(StoreUnavailableError):
        await database.in_write(insert_all, ())


@in_both_ways
async def test_many_writes_at_once_are_all_kept(database: Database, write: Write) -> None:
    names = [str(number) for number in range(40)]
    async with asyncio.timeout(30):
        await asyncio.gather(*(write(database, name) for name in names))
    assert await written(database) == sorted(names)


@in_both_ways
async def test_writes_that_are_cancelled_anywhere_leave_no_half_and_block_nobody(
    database: Database, write: Write
) -> None:
    # A task is cancelled after each number of turns of the loop that it may live.
    for turns in range(60):
        task = asyncio.create_task(write(database, f"{turns}-a", f"{turns}-b"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=30)
        assert task.done()
    async with asyncio.timeout(30):
        await write(database, "last")
    halves = [run_id.partition("-") for run_id in await written(database)]
    whole = {number for number, _, half in halves if half == "a"}
    assert whole == {number for number, _, half in halves if half == "b"}


async def test_a_writer_that_is_cancelled_in_the_middle_frees_its_turn(
    database: Database,
) -> None:
    entered = asyncio.Event()

    async def stuck() -> None:
        async with database.write() as connection:
            await connection.execute(insert(schema.abandoned_logs), {"run_id": "x", **LOG})
            entered.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(30):
        task = asyncio.create_task(stuck())
        await entered.wait()
        waiting = asyncio.create_task(write(database, "y"))
        task.cancel()
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await written(database) == ["y"]


@in_both_ways
async def test_closing_waits_for_a_transaction_that_is_ending(url: str, write: Write) -> None:
    database = await Database.open(url)
    task = asyncio.create_task(write(database, "a", "b"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=30)
    async with asyncio.timeout(30):
        await database.aclose()


@pytest.mark.promise("P9")
async def test_a_send_that_is_cancelled_and_repeated_makes_one_run(world: World) -> None:
    runs = world.records.runs
    for turns in range(0, 60, 3):
        key = a_key(f"otid-{turns}")
        task = asyncio.create_task(runs.create(OURS, a_run(world.thread), key, key.otids))
        for _ in range(turns):
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
async def test_a_value_that_can_not_be_stored_is_an_invalid_argument(
    records: Records, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="can not be stored"):
        await records.agents.create(OURS, an_agent(**wrong))
    assert await records.agents.list(OURS, first()) == []


async def test_a_moment_without_zone_is_a_fault_of_the_program(records: Records) -> None:
    with pytest.raises(Exception, match="needs a time zone"):
        await records.agents.create(OURS, an_agent(created_at=at(0).replace(tzinfo=None)))
