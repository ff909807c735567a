"""Short transactions that the event loop makes on PostgreSQL, and what it leaves to threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import uvloop
from sqlalchemy import Connection, delete, insert, literal, select, text

from reattach.domain.errors import ConflictError, NotFoundError, StoreUnavailableError
from reattach.domain.errors.stores import CommitUnknownError
from reattach.domain.ids import ConversationId
from reattach.records.database import connection as bounded
from reattach.records.database import schema
from reattach.records.database.connection import BoundedConnection
from reattach.records.database.database import Database
from reattach.records.database.event_loop.socket_watch import SocketWatch
from reattach.records.database.event_loop.threads import Threads
from reattach.records.database.prepared import PreparedStatement, Steps, driver_of
from reattach.records.records import Records
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.relay import Relay
from tests.support.record_samples import NOON, OURS, a_key, a_message, a_run, a_settlement, a_world

pytestmark = pytest.mark.slow

_logs = schema.abandoned_logs
_INSERT = PreparedStatement(insert(_logs), "run_id", "abandoned_at")
_INSERT_ONE = PreparedStatement(insert(_logs).returning(_logs.c.run_id), "run_id", "abandoned_at")
_DELETE = PreparedStatement(delete(_logs))
_IDS = PreparedStatement(select(_logs.c.run_id).order_by(_logs.c.run_id))
_ONE = PreparedStatement(select(literal(1).label("one")))


@pytest.fixture
def records_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The calls of threads from now on."""
    made: list[object] = []
    call = Threads.call

    def counted(self: Threads, work: Callable[[], Any]) -> Any:
        made.append(work)
        return call(self, work)

    monkeypatch.setattr(Threads, "call", counted)
    return made


def add(_: Connection, *run_ids: str) -> Steps[str]:
    for run_id in run_ids:
        yield [(_INSERT_ONE, {"run_id": run_id, "abandoned_at": NOON})]
    return run_ids[-1]


def read(_: Connection) -> Steps[list[str]]:
    (rows,) = yield [(_IDS, {})]
    return [run_id for (run_id,) in rows]


async def warm_up(database: Database) -> None:
    """Let the pools have a connection each, which the event loop can use."""
    await database.in_write(lambda connection: connection.execute(text("SELECT 1")))
    await database.in_read(lambda connection: connection.execute(text("SELECT 1")))


async def test_the_transactions_of_a_send_need_no_thread(
    records: Records, database: Database, calls: list[object]
) -> None:
    world = await a_world(records)
    run = await world.start()
    await records.runs.settle(run.id, a_settlement(*run.input))
    await records.conversations.with_agent(OURS, world.conversation.id)
    calls.clear()
    await records.conversations.with_agent(OURS, world.conversation.id)
    run = a_run(world.thread, input=(a_message(otid="one"),))
    await records.runs.create(OURS, run, a_key(run.id), [run.id])
    await records.runs.mark_running(run.id, run.token, notes_begun=True)
    assert await records.runs.settle(run.id, a_settlement(*run.input, a_message("yes")))
    with pytest.raises(NotFoundError):
        await records.conversations.with_agent(OURS, ConversationId("conv-none"))
    assert not calls


async def test_a_transaction_is_committed_and_the_next_one_sees_it(
    database: Database, calls: list[object]
) -> None:
    await warm_up(database)
    calls.clear()
    assert await database.in_short_write(add, "a", "b") == "b"
    assert await database.in_single_write(_INSERT, {"run_id": "c", "abandoned_at": NOON}) == 1
    assert await database.in_short_read(read) == ["a", "b", "c"]
    assert await database.run_prepared(_IDS) == [["a"], ["b"], ["c"]]
    assert not calls


async def test_a_transaction_that_fails_changes_nothing_and_its_connection_is_used_again(
    database: Database, calls: list[object]
) -> None:
    def fail(connection: Connection) -> Steps[None]:
        yield from add(connection, "b")
        raise RuntimeError("A fault.")

    await warm_up(database)
    await database.in_short_write(add, "a")
    calls.clear()
    with pytest.raises(RuntimeError, match=r"A fault\."):
        await database.in_short_write(fail)
    with pytest.raises(ConflictError):
        await database.in_short_write(add, "b", "a")
    assert await database.in_short_read(read) == ["a"]
    await database.in_short_write(add, "c")
    assert not calls


async def test_a_transaction_with_other_statements_is_repeated_in_a_thread(
    database: Database, calls: list[object]
) -> None:
    def work(connection: Connection) -> Steps[int]:
        yield from add(connection, "a")
        connection.execute(delete(_logs).where(_logs.c.run_id == "a"))
        _INSERT.run(connection, {"run_id": "b", "abandoned_at": NOON})
        (rows,) = yield [(_IDS, {})]
        return len(rows)

    await warm_up(database)
    calls.clear()
    assert await database.in_short_write(work) == 1
    assert len(calls) == 1
    assert await database.in_short_read(read) == ["b"]
    await database.in_short_write(add, "c")
    assert len(calls) == 1


async def test_all_steps_of_a_read_see_one_state(
    database: Database, calls: list[object], postgresql_url: str
) -> None:
    def read_twice(connection: Connection) -> Steps[list[list[str]]]:
        first = yield from read(connection)
        with psycopg.connect(postgresql_url, autocommit=True) as other:
            other.execute("INSERT INTO abandoned_logs VALUES (gen_random_uuid(), now())")
        return [first, (yield from read(connection))]

    await warm_up(database)
    calls.clear()
    for _ in range(3):
        first, second = await database.in_short_read(read_twice)
        assert first == second
    assert not calls


async def test_large_values_are_left_to_threads(database: Database, calls: list[object]) -> None:
    large = "r" * (bounded.LOOP_BYTES + 1)
    await warm_up(database)
    calls.clear()
    assert await database.in_short_write(add, large) == large
    assert len(calls) == 1
    assert await database.in_short_read(read) == [large]
    assert await database.run_prepared(_IDS) == [[large]]
    assert len(calls) == 3
    assert await database.in_single_write(_DELETE, {}) == 1
    assert await database.in_short_read(read) == []
    assert len(calls) == 3


async def test_a_transaction_that_waits_for_a_lock_delays_no_other_one(
    database: Database, postgresql_url: str, calls: list[object]
) -> None:
    await warm_up(database)
    await database.in_short_write(add, "a")
    async with await psycopg.AsyncConnection.connect(postgresql_url) as holder:
        await holder.execute("LOCK TABLE abandoned_logs")
        waiting = asyncio.create_task(database.in_short_write(add, "b"))
        async with asyncio.timeout(30):
            assert await database.run_prepared(_ONE) == [[1]]
        assert not waiting.done()
        await holder.rollback()
    async with asyncio.timeout(30):
        assert await waiting == "b"


async def test_a_cancelled_caller_waits_for_the_end_of_its_transaction(
    database: Database, postgresql_url: str
) -> None:
    await warm_up(database)
    async with await psycopg.AsyncConnection.connect(postgresql_url) as holder:
        await holder.execute("LOCK TABLE abandoned_logs")
        waiting = asyncio.create_task(database.in_short_write(add, "a"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await holder.rollback()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await database.in_short_read(read) == ["a"]


async def test_closing_waits_for_the_transactions_under_way(
    database: Database, postgresql_url: str
) -> None:
    await warm_up(database)
    async with await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE abandoned_logs")
            waiting = asyncio.create_task(database.in_short_write(add, "a"))
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(database.aclose())
            await asyncio.sleep(0.05)
            assert not closing.done()
        async with asyncio.timeout(30):
            assert await waiting == "a"
            await closing
        with pytest.raises(StoreUnavailableError, match="closing"):
            await database.in_short_write(add, "b")
        found = await (await other.execute("SELECT run_id FROM abandoned_logs")).fetchall()
    assert found == [("a",)]


async def test_a_server_that_says_nothing_is_unavailable_in_bounded_time(
    server: PostgresqlServer, relay: Relay, monkeypatch: pytest.MonkeyPatch, calls: list[object]
) -> None:
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 0.3)
    database = await Database.open(server.url(address=relay.address) + "?connect_timeout=2")
    await warm_up(database)
    calls.clear()
    relay.swallow()
    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailableError):
            await database.in_short_read(read)
        with pytest.raises(StoreUnavailableError) as failed:
            await database.in_short_write(add, "silent")
    assert not isinstance(failed.value, CommitUnknownError)
    relay.mend()
    async with asyncio.timeout(30):
        assert await database.in_short_read(read) == []
    await database.aclose()


async def test_a_connection_that_is_cut_within_a_transaction_changes_nothing(
    server: PostgresqlServer, relay: Relay
) -> None:
    database = await Database.open(server.url(address=relay.address))
    await warm_up(database)

    def cut(connection: Connection) -> Steps[None]:
        yield from add(connection, "cut")
        relay.cut()
        yield from add(connection, "after it")

    with pytest.raises(StoreUnavailableError) as failed:
        await database.in_short_write(cut)
    assert not isinstance(failed.value, CommitUnknownError)
    async with asyncio.timeout(30):
        assert await database.in_short_read(read) == []
    await database.aclose()


async def test_a_connection_that_is_lost_between_two_uses_costs_the_event_loop_nothing(
    database: Database, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm_up(database)
    await database.in_short_read(read)
    noted = 0
    note = SocketWatch._note_readable

    def counted(watch: Any) -> None:
        nonlocal noted
        noted += 1
        note(watch)

    monkeypatch.setattr(SocketWatch, "_note_readable", counted)
    await database.in_short_write(add, "a")
    async with await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
    noted = 0
    await asyncio.sleep(0.2)
    assert noted <= 6
    assert await database.in_short_read(read) == ["a"]


async def test_threads_and_the_event_loop_share_the_connections(
    database: Database, postgresql_url: str
) -> None:
    def in_thread(connection: Connection) -> None:
        assert not driver_of(connection).is_in_loop
        connection.execute(text("SELECT pg_sleep(0.001)"))

    async with asyncio.timeout(60):
        for round_ in range(20):
            names = [f"{round_} {number}" for number in range(12)]
            await asyncio.gather(
                *(database.in_short_write(add, name) for name in names),
                *(database.in_write(in_thread) for _ in names),
            )
    assert len(await database.in_short_read(read)) == 240
    made: Any = database.writes.engine.pool
    assert made.checkedout() <= 6
    assert all(isinstance(driver_of(one), BoundedConnection) for one in database.writes._idle)


@pytest.mark.parametrize("answered_bytes", [1, 30])
def test_a_connection_that_is_reset_within_an_answer_ends_the_wait_on_uvloop(
    server: PostgresqlServer, relay: Relay, answered_bytes: int
) -> None:
    async def lose() -> None:
        database = await Database.open(server.url(address=relay.address))
        await warm_up(database)
        await database.in_short_read(read)
        relay.cut_after(answered_bytes)
        reading = asyncio.create_task(database.in_short_read(read))
        await asyncio.sleep(0)
        time.sleep(0.3)  # The bytes and the reset come at once then.
        async with asyncio.timeout(10):
            assert await reading == []
            await database.aclose()

    uvloop.run(lose())


def test_an_answer_that_came_during_a_pause_of_the_process_is_taken_on_uvloop(
    server: PostgresqlServer, relay: Relay, monkeypatch: pytest.MonkeyPatch, calls: list[object]
) -> None:
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 1.0)

    async def pause() -> None:
        database = await Database.open(server.url(address=relay.address))
        await warm_up(database)
        await database.in_short_read(read)
        calls.clear()
        relay.pause()
        reading = asyncio.create_task(database.in_short_read(read))
        await asyncio.sleep(0.35)
        relay.resume()
        time.sleep(1.2)  # As a process that was stopped.
        assert await reading == []
        assert not calls
        await database.aclose()

    uvloop.run(pause())


async def test_a_lost_connection_that_was_left_to_threads_is_replaced(
    database: Database, postgresql_url: str
) -> None:
    await warm_up(database)
    await database.in_short_write(add, "a")
    async with await psycopg.AsyncConnection.connect(postgresql_url, autocommit=True) as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
    await asyncio.sleep(0.1)
    database.writes._unwatch_one()
    await database.in_short_write(add, "b")
    assert await database.in_short_read(read) == ["a", "b"]
    made: Any = database.writes.engine.pool
    assert made.checkedout() == 1


async def test_closing_says_nothing_of_connections_that_were_lost(
    server: PostgresqlServer, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    database = await Database.open(server.url(address=relay.address))
    await warm_up(database)
    await database.in_short_read(read)
    await database.in_single_write(_DELETE, {})
    relay.cut()
    await asyncio.sleep(0.2)
    await database.aclose()
    assert not caplog.records


async def test_closing_waits_for_a_transaction_that_is_left_to_a_thread(
    database: Database, postgresql_url: str, calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "r" * (bounded.LOOP_BYTES + 1)
    calls_before_close: list[int] = []
    loop = asyncio.get_running_loop()
    run_in_executor: Any = loop.run_in_executor

    def note(executor: None, work: Callable[[], None]) -> Any:
        calls_before_close.append(len(calls))
        return run_in_executor(executor, work)

    def late(connection: Connection) -> Steps[str]:
        yield [(_INSERT_ONE, {"run_id": "a", "abandoned_at": NOON})]
        return (yield from add(connection, large))

    await warm_up(database)
    calls.clear()
    monkeypatch.setattr(loop, "run_in_executor", note)
    async with await psycopg.AsyncConnection.connect(postgresql_url) as holder:
        await holder.execute("LOCK TABLE abandoned_logs")
        waiting = asyncio.create_task(database.in_short_write(late))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(database.aclose())
        await asyncio.sleep(0.05)
        await holder.rollback()
    async with asyncio.timeout(30):
        assert await waiting == large
        await closing
    assert calls_before_close == [0, 1]  # Reads, then writes.


async def test_a_read_of_several_steps_is_recognised_when_it_is_made_again(
    records: Records,
) -> None:
    world = await a_world(records)
    for _ in range(3):
        await records.agents.with_message_ids(OURS, world.agent.id)
        await records.conversations.with_message_ids(OURS, world.conversation.id)
    assert len(records._database.reads._long_reads) == 2
