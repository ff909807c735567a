from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Connection, insert, text

from reattach.domain.clock import SystemClock
from reattach.domain.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    StartupError,
    StoreUnavailableError,
)
from reattach.domain.messages import TextPart
from reattach.records import threads
from reattach.records.base import RunNotes, Span, Thread
from reattach.records.database import connection as bounded
from reattach.records.database import postgresql, schema
from reattach.records.database.database import Database
from reattach.records.database.prepared import LeftToThreadError, driver_of
from reattach.records.records import Records
from reattach.records.runs.created import RunCreated
from reattach.records.runs.notifications import NotificationsMissed, RunSettled
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.relay import Relay
from tests.support.record_samples import (
    NOON,
    OURS,
    a_block,
    a_message,
    a_run,
    a_settlement,
    a_world,
    an_agent,
    setting,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def records_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
async def other_process(postgresql_url: str) -> AsyncIterator[Records]:
    other = await Records.open(postgresql_url, clock=SystemClock())
    yield other
    await other.aclose()


def assert_reveals_nothing(error: StoreUnavailableError) -> None:
    for word in ("postgres", "psycopg", "127.0.0.1", "SELECT", "INSERT", "port"):
        assert word.lower() not in error.detail.lower()


def select_one(connection: Connection) -> int:
    one: int = connection.execute(text("SELECT 1")).scalar_one()
    return one


async def test_a_url_says_how_to_connect_and_may_name_a_socket(
    server: PostgresqlServer,
) -> None:
    folder = quote(str(server.folder), safe="")
    for url in (
        server.url(),
        server.url().replace("postgresql://", "postgresql+psycopg://"),
        server.url().replace("postgresql://", "postgres://"),
        server.url() + "?sslmode=disable&application_name=mine&connect_timeout=2",
        f"postgresql://postgres@/postgres?host={folder}&port={server.port}",
        f"postgresql://postgres@{folder}:{server.port}/postgres",
    ):
        database = await Database.open(url)
        name = (await database.rows(text("SHOW application_name")))[0]["application_name"]
        assert name == ("mine" if "mine" in url else "reattach")
        await database.aclose()


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql://localhost", "names no database"),
        ("mysql://localhost/x", "'mysql'. Use a URL such as postgresql://user"),
        ("postgresql+asyncpg://localhost/x", "cannot be stored"),
        ("postgresql://localhost:port/x", "cannot be parsed"),
    ],
)
async def test_an_unsupported_url_is_refused_at_the_start(url: str, hint: str) -> None:
    with pytest.raises(StartupError, match=hint):
        await Database.open(url)


async def test_an_error_about_a_url_does_not_contain_its_password() -> None:
    with pytest.raises(StartupError) as refused:
        await Database.open("mysql://me:hunter2@localhost/x")
    assert "hunter2" not in str(refused.value)


async def test_a_wrong_password_is_unavailable(server: PostgresqlServer) -> None:
    with pytest.raises(StoreUnavailableError) as refused:
        await Database.open(server.url().replace(server.password, "hunter2"))
    assert_reveals_nothing(refused.value)


async def test_a_database_in_another_encoding_is_refused(server: PostgresqlServer) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE latin ENCODING LATIN1 LOCALE_PROVIDER libc LOCALE 'C' "
            "TEMPLATE template0"
        )
    with pytest.raises(StartupError, match="UTF8, and this one is in LATIN1"):
        await Database.open(server.url("latin"))


async def test_text_with_a_nul_is_an_invalid_argument_and_in_json_it_is_kept(
    records: Records,
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"U\+0000"):
        await records.agents.create(OURS, an_agent("a\0b"))
    with pytest.raises(InvalidArgumentError):
        await records.runs.newest_by_otid(OURS, "a\0b")
    world = await a_world(records)
    run = await world.start()
    await records.runs.settle(run.id, a_settlement(a_message("a\0b\N{SNOWMAN}")))
    history = await records.messages.history(OURS, world.thread)
    assert history[-1].parts == (TextPart("a\0b\N{SNOWMAN}"),)


async def test_connections_are_bounded_whatever_the_number_of_callers(
    records: Records, postgresql_url: str
) -> None:
    world = await a_world(records)
    async with records.notifications():
        async with asyncio.timeout(60):
            await asyncio.gather(
                *(records.agents.get(OURS, world.agent.id) for _ in range(200)),
                *(
                    records.agents.update(OURS, world.agent.id, setting(name="x"))
                    for _ in range(100)
                ),
            )
        async with await psycopg.AsyncConnection.connect(postgresql_url) as connection:
            row = await (
                await connection.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'reattach'"
                )
            ).fetchone()
    assert row is not None
    assert 3 <= row[0] <= postgresql.WRITERS + postgresql.READERS + 1


async def test_a_statement_that_takes_too_long_is_unavailable_and_the_next_one_is_not(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_SESSION", "SET statement_timeout = 100")
    database = await Database.open(postgresql_url)
    with pytest.raises(StoreUnavailableError):
        await database.in_write(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
    assert await database.in_write(select_one) == 1
    await database.aclose()


async def test_a_lock_that_is_not_let_go_of_is_unavailable(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_SESSION", "SET statement_timeout = 100")
    records = await Records.open(postgresql_url, clock=SystemClock())
    world = await a_world(records)
    async with await psycopg.AsyncConnection.connect(postgresql_url) as holder:
        await holder.execute("SELECT 1 FROM agents FOR UPDATE")
        with pytest.raises(StoreUnavailableError):
            await records.agents.update(OURS, world.agent.id, setting(name="x"))
        await holder.rollback()
    assert (await records.agents.update(OURS, world.agent.id, setting(name="x"))).name == "x"
    await records.aclose()


async def test_a_write_that_was_ended_because_of_a_deadlock_is_repeated(database: Database) -> None:
    row = {"abandoned_at": NOON}
    rows = [{"run_id": run_id, **row} for run_id in "ab"]
    await database.in_write(
        lambda connection: connection.execute(insert(schema.abandoned_logs), rows)
    )
    meeting = threading.Barrier(2, timeout=30)
    begun: list[str] = []

    def lock_both(connection: Connection, one: str, two: str) -> str:
        wanted = text("SELECT 1 FROM abandoned_logs WHERE run_id = :id FOR UPDATE")
        connection.execute(wanted, {"id": one})
        begun.append(one)
        if len(begun) <= 2:
            meeting.wait()
        connection.execute(wanted, {"id": two})
        return one

    async with asyncio.timeout(30):
        ended = await asyncio.gather(
            database.in_write(lock_both, "a", "b"), database.in_write(lock_both, "b", "a")
        )
    assert [*ended] == ["a", "b"]
    # The repeated one may be faster than the one that waits, and then meets it once more.
    assert len(begun) > 2


@pytest.mark.promise("P3", "P7")
async def test_a_settlement_keeps_its_messages_if_a_summary_takes_their_place_meanwhile(
    records: Records, other_process: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await a_world(records)
    run = await world.start(world.thread)
    has_looked, may_add = asyncio.Event(), threading.Event()
    loop, add_after = asyncio.get_running_loop(), threads.add_after

    def add_later(*given: Any) -> None:
        """Wait after the look for the last place, the first time, in a thread."""
        if not may_add.is_set():
            if threading.current_thread() is threading.main_thread():
                raise LeftToThreadError
            loop.call_soon_threadsafe(has_looked.set)
            assert may_add.wait(30)
        add_after(*given)

    async with asyncio.timeout(30):
        with monkeypatch.context() as patch:
            patch.setattr(threads, "add_after", add_later)
            settling = asyncio.create_task(
                records.runs.settle(run.id, a_settlement(a_message("answer")))
            )
            await has_looked.wait()
        try:
            await other_process.messages.append(OURS, world.thread, a_message("summary"))
        finally:
            may_add.set()
        assert await settling
    kept = await records.messages.list(
        OURS, world.thread, Span(10, ascending=True), system_too=False
    )
    assert [message.parts for message in kept] == [
        (TextPart("summary"),),
        (TextPart("answer"),),
    ]


@pytest.mark.promise("P10")
async def test_an_agent_that_is_deleted_while_a_run_of_it_begins_loses_no_active_run(
    records: Records, other_process: Records
) -> None:
    for _ in range(10):
        world = await a_world(records)
        run = a_run(world.default)
        async with asyncio.timeout(30):
            outcome, deleted = await asyncio.gather(
                records.runs.create(OURS, run, None, ()),
                other_process.agents.delete(OURS, world.agent.id),
                return_exceptions=True,
            )
        if isinstance(outcome, RunCreated):
            assert isinstance(deleted, ConflictError)
            assert (await records.runs.get(OURS, run.id)).status.is_active
        else:
            assert isinstance(outcome, NotFoundError)
            assert deleted == []


async def test_two_blocks_with_one_label_are_not_attached_at_once(
    records: Records, other_process: Records
) -> None:
    for _ in range(10):
        agent = await records.agents.create(OURS, an_agent())
        blocks = [await records.blocks.create(OURS, a_block("human")) for _ in range(2)]
        async with asyncio.timeout(30):
            ended = await asyncio.gather(
                records.blocks.attach(OURS, agent.id, blocks[0].id),
                other_process.blocks.attach(OURS, agent.id, blocks[1].id),
                return_exceptions=True,
            )
        assert [type(end) for end in ended if end is not None] == [ConflictError]
        assert len((await records.agents.get(OURS, agent.id)).blocks) == 1


async def test_a_label_and_an_attachment_that_contradict_each_other_are_not_both_taken(
    records: Records, other_process: Records
) -> None:
    for _ in range(10):
        agent = await records.agents.create(OURS, an_agent(blocks=(a_block("old"),)))
        block = await records.blocks.create(OURS, a_block("new"))
        async with asyncio.timeout(30):
            ended = await asyncio.gather(
                records.blocks.update(OURS, agent.blocks[0].id, setting(label="new")),
                other_process.blocks.attach(OURS, agent.id, block.id),
                return_exceptions=True,
            )
        assert sum(isinstance(end, ConflictError) for end in ended) == 1
        labels = [held.label for held in (await records.agents.get(OURS, agent.id)).blocks]
        assert len(labels) == len(set(labels))


async def test_a_server_that_restarts_is_used_again_by_itself(server: PostgresqlServer) -> None:
    records = await Records.open(server.url(), clock=SystemClock())
    world = await a_world(records)
    async with asyncio.timeout(60):
        # More at once than there is: every connection of the pool has been used.
        await asyncio.gather(*(records.agents.get(OURS, world.agent.id) for _ in range(20)))
        for end in (server.stop, server.kill):
            await asyncio.to_thread(end)
            for call in (
                records.agents.get(OURS, world.agent.id),
                records.agents.update(OURS, world.agent.id, setting(name="x")),
            ):
                with pytest.raises(StoreUnavailableError) as refused:
                    await call
                assert_reveals_nothing(refused.value)
            await asyncio.to_thread(server.start)
            for name in ("a", "b"):
                await records.agents.update(OURS, world.agent.id, setting(name=name))
                assert (await records.agents.get(OURS, world.agent.id)).name == name
    await records.aclose()


async def test_a_connection_that_is_cut_within_a_write_changes_nothing(
    server: PostgresqlServer, relay: Relay
) -> None:
    database = await Database.open(server.url(address=relay.address))

    def write(connection: Connection) -> None:
        row = {"run_id": "cut", "abandoned_at": NOON}
        connection.execute(insert(schema.abandoned_logs), row)
        relay.cut()

    with pytest.raises(StoreUnavailableError):
        await database.in_write(write)
    async with asyncio.timeout(30):
        assert await database.rows(text("SELECT run_id FROM abandoned_logs")) == []
    await database.aclose()


async def test_a_row_that_is_locked_delays_no_other_run_of_a_group(
    server: PostgresqlServer,
) -> None:
    records = await Records.open(server.url(), clock=SystemClock())
    world = await a_world(records)
    threads = [Thread(world.agent.id, (await world.another()).id) for _ in range(3)]
    locked, *free = [await world.start(thread) for thread in threads]
    notes = RunNotes(upstream_id="noted")
    may_end, is_held = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with await psycopg.AsyncConnection.connect(server.url()) as holding:
            await holding.execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", [locked.id])
            is_held.set()
            await may_end.wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold())
        await is_held.wait()
        waiting = tasks.create_task(records.runs.note(locked.id, locked.token, notes))
        noted = (records.runs.note(run.id, run.token, notes) for run in free)
        assert await asyncio.gather(*noted) == [True, True]
        assert not waiting.done()
        may_end.set()
        assert await waiting
    await records.aclose()


async def test_a_server_that_says_nothing_is_unavailable_in_bounded_time(
    server: PostgresqlServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 0.3)
    database = await Database.open(server.url(address=relay.address) + "?connect_timeout=2")
    relay.pause()
    with pytest.raises(StoreUnavailableError):
        async with asyncio.timeout(30):
            await database.in_read(select_one)
    relay.resume()
    async with asyncio.timeout(30):
        assert await database.in_read(select_one) == 1
    await database.aclose()


async def test_closing_after_a_read_asks_nothing_of_a_server_that_is_silent_by_now(
    server: PostgresqlServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 25.0)
    database = await Database.open(server.url(address=relay.address))
    assert await database.in_read(select_one) == 1
    for connection in database.reads._idle:  # The answer to COMMIT comes after the result.
        await asyncio.to_thread(select.select, [driver_of(connection).fileno()], [], [], 30)
    relay.swallow()
    async with asyncio.timeout(20):
        await database.aclose()


async def test_notifications_resume_after_an_outage_and_the_gap_is_reported(
    server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "RECONNECT_SECONDS", 0.02)
    records = await Records.open(server.url(), clock=SystemClock())
    world = await a_world(records)
    async with asyncio.timeout(60), records.notifications() as notifications:
        run, _ = await world.turn("one")
        assert await anext(notifications) == RunSettled(run)
        await asyncio.to_thread(server.kill)
        missed = asyncio.ensure_future(anext(notifications))
        await asyncio.to_thread(server.start)
        assert await missed == NotificationsMissed()
        run, _ = await world.turn("two")
        assert await anext(notifications) == RunSettled(run)
    await records.aclose()


async def test_a_listener_that_starts_during_an_outage_is_notified_when_it_is_over(
    server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "RECONNECT_SECONDS", 0.02)
    records = await Records.open(server.url(), clock=SystemClock())
    await asyncio.to_thread(server.kill)
    async with asyncio.timeout(60), records.notifications() as notifications:
        await asyncio.to_thread(server.start)
        assert await anext(notifications) == NotificationsMissed()
    await records.aclose()


async def test_a_listener_whose_network_is_silent_notices_it(
    server: PostgresqlServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(postgresql, "LISTEN_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(postgresql, "RECONNECT_SECONDS", 0.02)
    records = await Records.open(server.url(address=relay.address), clock=SystemClock())
    async with asyncio.timeout(60), records.notifications() as notifications:
        before = relay.connections
        relay.pause()
        missed = asyncio.ensure_future(anext(notifications))
        async with asyncio.timeout(30):
            while relay.connections == before:
                await asyncio.sleep(0.01)
        relay.resume()
        assert await missed == NotificationsMissed()
    await records.aclose()


async def test_an_answer_that_takes_long_over_a_slow_network_is_settled_and_read(
    server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C15: each exchange takes several times as long as anybody may be silent."""
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 0.7)
    monkeypatch.setattr(postgresql, "IDLE_SECONDS", 0.7)
    session = "SET lock_timeout = 700; SET idle_in_transaction_session_timeout = 700"
    monkeypatch.setattr(postgresql, "_SESSION", session)
    answer = "".join(f"{number:09}," for number in range(300_000))
    with Relay(server.address, bytes_per_second=1_500_000) as relay:
        records = await Records.open(server.url(address=relay.address), clock=SystemClock())
        world = await a_world(records)
        run = await world.start()
        assert await records.runs.settle(run.id, a_settlement(a_message(answer, run_id=run.id)))
        kept = await records.messages.history(OURS, world.thread)
        assert kept[-1].text == answer
        await records.aclose()
