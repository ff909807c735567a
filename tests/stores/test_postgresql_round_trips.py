"""Statements that PostgreSQL gets together, and the errors and losses between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from reattach.domain.clock import SystemClock
from reattach.domain.errors import ConflictError, InvalidArgumentError, StoreUnavailableError
from reattach.domain.errors.stores import CommitUnknownError
from reattach.domain.ids import FIRST_TOKEN, RunId, Token
from reattach.records.base import LogSummary, RunKnown
from reattach.records.database import connection as bounded
from reattach.records.database import postgresql
from reattach.records.database.connection import ListeningConnection
from reattach.records.database.database import Database
from reattach.records.database.prepared import driver_of
from reattach.records.database.transactions import Transactions
from reattach.records.records import Records
from reattach.records.runs import timelines
from reattach.records.runs.notifications import RunSettled
from tests.support.record_samples import (
    NOON,
    OURS,
    a_key,
    a_message,
    a_run,
    a_settlement,
    a_step,
    a_world,
    setting,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def records_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns how often a connection waited for the server since the last call."""
    count = 0
    receiving = bounded.BoundedConnection._receiving

    def counted(self: bounded.BoundedConnection, **rest: Any) -> Any:
        nonlocal count
        count += 1
        return receiving(self, **rest)

    def since_then() -> int:
        nonlocal count
        found, count = count, 0
        return found

    monkeypatch.setattr(bounded.BoundedConnection, "_receiving", counted)
    return since_then


@pytest.fixture(autouse=True, params=["event loop", "threads"])
def made_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short transactions be made in the event loop, or all of them in threads."""
    if request.param == "threads":
        monkeypatch.setattr(Transactions, "_take_watched", lambda _: None)


def terminate_others(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )


async def test_a_send_waits_for_few_round_trips(
    records: Records, round_trips: Callable[[], int]
) -> None:
    world = await a_world(records)
    for _ in range(2):  # The first time, the context is not in memory.
        await records.conversations.with_agent(OURS, world.conversation.id)
        found = [round_trips()]
        run = a_run(world.thread, input=(a_message(otid="one"),))
        await records.runs.create(OURS, run, a_key(run.id), [run.id])
        found.append(round_trips())
        assert await records.runs.mark_running(run.id, run.token, notes_begun=True)
        found.append(round_trips())
        log = LogSummary(first_event_at=NOON, event_count=3, size_bytes=300, commits="[]")
        settlement = a_settlement(*run.input, a_message("yes"), steps=(a_step(run),), log=log)
        assert await records.runs.settle(run.id, settlement)
        found.append(round_trips())
    assert found == [1, 3, 1, 2]


async def test_a_server_that_finds_nothing_to_do_waits_for_one_round_trip_for_each_look(
    records: Records, round_trips: Callable[[], int]
) -> None:
    world = await a_world(records)
    await world.turn("one")
    await records.owners.register("a", 60)
    found = []
    for _ in range(2):  # The first time, statements are prepared.
        round_trips()
        assert not await records.owners.bury("a")
        assert not await records.runs.orphans(10)
        assert not await records.callbacks.claim(10, 60)
        found.append(round_trips())
    assert found == [3, 3]


async def test_a_listener_leaves_the_event_loop_alone_while_nothing_comes(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = 0
    note = ListeningConnection._note_readable

    def counted(connection: ListeningConnection) -> None:
        nonlocal noted
        noted += 1
        note(connection)

    monkeypatch.setattr(ListeningConnection, "_note_readable", counted)
    world = await a_world(records)
    async with asyncio.timeout(60), records.notifications() as notifications:
        first = asyncio.ensure_future(anext(notifications))
        await asyncio.sleep(0.5)
        assert noted == 0
        run, _ = await world.turn("one")
        assert await first == RunSettled(run)
    assert noted == 1


@pytest.mark.parametrize("kind", ["read", "write", "single write", "deferred write"])
async def test_connections_that_were_lost_meanwhile_are_replaced_without_an_error(
    records: Records, database: Database, postgresql_url: str, kind: str
) -> None:
    world = await a_world(records)
    run = await world.start()

    async def call() -> None:
        match kind:
            case "read":
                await database.in_read(lambda connection: connection.execute(text("SELECT 1")))
            case "write":
                await records.agents.update(OURS, world.agent.id, setting(name="x"))
            case "single write":
                await records.runs.mark_running(run.id, run.token)
            case _:
                await database.in_write(timelines.keep, run.id, FIRST_TOKEN, "[]")

    for _ in range(3):
        await call()
        await asyncio.to_thread(terminate_others, postgresql_url)
    await call()


async def test_an_error_of_a_deferred_statement_is_certain_and_spoils_nothing(
    records: Records, database: Database
) -> None:
    world = await a_world(records)
    run = await world.start()
    for _ in range(2):
        with pytest.raises(InvalidArgumentError):
            await database.in_write(timelines.keep, run.id, Token(2**70), "[]")
        with pytest.raises(ConflictError):
            await database.in_write(timelines.keep, RunId("run-none"), FIRST_TOKEN, "[]")
        await database.in_write(timelines.keep, run.id, FIRST_TOKEN, "[]")
    assert await records.timelines.of_run(run.id) == [(FIRST_TOKEN, "[]")]


async def test_a_settlement_that_waits_too_long_for_a_lock_certainly_changed_nothing(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_SESSION", "SET statement_timeout = 100")
    records = await Records.open(postgresql_url, clock=SystemClock())
    world = await a_world(records)
    run = await world.start()
    async with await psycopg.AsyncConnection.connect(postgresql_url) as holder:
        await holder.execute("SELECT 1 FROM conversations FOR UPDATE")
        with pytest.raises(StoreUnavailableError) as refused:
            await records.runs.settle(run.id, a_settlement(*run.input))
        assert not isinstance(refused.value, CommitUnknownError)
        await holder.rollback()
    assert (await records.runs.get(OURS, run.id)).status.is_active
    assert await records.runs.settle(run.id, a_settlement(*run.input))
    await records.aclose()


async def test_a_commit_whose_answer_is_lost_may_have_happened(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await a_world(records)
    run = a_run(world.thread)
    committing = bounded.BoundedConnection.committing

    def lose(connection: bounded.BoundedConnection) -> Any:
        with psycopg.connect(connection.info.dsn, password=connection.info.password) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
        return committing(connection)

    with monkeypatch.context() as patched:
        patched.setattr(bounded.BoundedConnection, "committing", lose)
        with pytest.raises(CommitUnknownError):
            await records.runs.create(OURS, run, a_key("one"), ["one"])
    created = await records.runs.create(OURS, run, a_key("one"), ["one"], repeated=True)
    assert not isinstance(created, RunKnown)
    assert created.run.id == run.id


async def test_statements_of_a_cursor_and_prepared_ones_are_executed_in_their_order(
    database: Database, records: Records
) -> None:
    world = await a_world(records)
    run = await world.start()
    count = text("SELECT count(*) FROM run_timelines")

    def work(connection: Connection) -> list[int]:
        counts = [connection.execute(count).scalar_one()]
        for token in (1, 2):
            timelines.keep(connection, run.id, Token(token), "[]")
            counts.append(connection.execute(count).scalar_one())
        return counts

    assert await database.in_write(work) == [0, 1, 2]


async def test_more_statements_than_a_connection_prepares_are_executed_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "PREPARED_MOST", 3)

    def work(connection: Connection) -> list[int]:
        driver = driver_of(connection)
        asked = [(f"SELECT $1::INTEGER + {number}", [1]) for number in range(8)]
        return [answer.rows[0][0] for answer in driver.ask(*asked, *asked)]

    for _ in range(2):
        assert await database.in_write(work) == [*range(1, 9)] * 2
