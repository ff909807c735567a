"""The audit on shared stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest

from reattach.domain import backoff
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, Token, new_run_id
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.records.database import connection as bounded
from reattach.testing.conformance.log_samples import append
from tests.cluster.nodes import Nodes
from tests.support.in_process_readers import Reader
from tests.support.stores import eventually

SILENCE_SECONDS = 1.5
"""How long the nodes of this module wait for a silent PostgreSQL."""

_HOLD_BACK = """
CREATE FUNCTION hold_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM set_config('lock_timeout', '0', true);
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold_back AFTER INSERT ON runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold_back();
SELECT pg_advisory_lock(1)
"""
"""Deferred triggers run within the COMMIT, so it takes as long as somebody else has the lock."""

_LET_GO = "SELECT pg_advisory_unlock_all()"
_CLEAN_UP = "SET lock_timeout = '10s'; DROP FUNCTION hold_back CASCADE"
_HELD_BACK = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND query = 'COMMIT' AND wait_event = 'advisory'
"""


class HeldCommits:
    """The COMMITs of new runs, which PostgreSQL does not finish before they are ``let_go``."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection

    async def are_held(self) -> bool:
        """Return whether a COMMIT is waiting."""
        row = await (await self._connection.execute(_HELD_BACK)).fetchone()
        return row is not None and row[0] > 0

    async def let_go(self) -> None:
        """Let those that wait and all later ones finish."""
        await self._connection.execute(_LET_GO)


@asynccontextmanager
async def held_commits(database_url: str) -> AsyncIterator[HeldCommits]:
    """Hold back the COMMITs of new runs, as an absent standby or a stalled disk does."""
    connect = psycopg.AsyncConnection.connect
    async with await connect(database_url, autocommit=True) as connection:
        await connection.execute(_HOLD_BACK)
        try:
            yield HeldCommits(connection)
        finally:
            await connection.execute(_LET_GO)
            await connection.execute(_CLEAN_UP)


@pytest.mark.promise("P5")
async def test_a_log_of_redis_that_lost_its_end_is_ended_by_the_audit_of_one_process(
    nodes: Nodes,
) -> None:
    """C2: Redis lost its last second; every process audits, one of them ends the log."""
    first, second = await nodes.node(keeps_up=False), await nodes.node(keeps_up=False)
    send = nodes.stores.send(await nodes.stores.conversation(), "one two")
    run = await first.runs.wait_until_settled(await first.runs.send(send))
    frames = await nodes.stores.frames(run)
    await nodes.stores.log.delete(run.id)
    await nodes.stores.log.open(run.id, run.token)
    await append(nodes.stores.log, run.id, run.token, 1, frames[:1])
    await asyncio.gather(*(node.runs.audit.compare_logs() for node in (first, second)))
    assert first.runs.audit.found.lost_ends + second.runs.audit.found.lost_ends >= 1
    for node in (first, second):
        async with Reader(node.runs, run) as reader:
            await reader.to_end()
        assert (reader.status, reader.error["code"]) == (410, "events_lost")
        async with Reader(node.runs, run, LOST_LOG_FIRST_SEQ - 1) as late:
            assert (await late.to_end()).done
        await node.runs.audit.compare_logs()
    assert first.runs.audit.found.lost_ends + second.runs.audit.found.lost_ends <= 2


@pytest.mark.promise("P14")
async def test_a_log_of_redis_without_a_record_is_deleted_after_the_retention(
    nodes: Nodes,
) -> None:
    """C11: PostgreSQL lost the commit of the run, whose log is open and has no expiry."""
    node = await nodes.node(keeps_up=False)
    stranger = new_run_id()
    await nodes.stores.log.open(stranger, Token(1))
    await node.runs.audit.compare_logs()
    assert node.runs.audit.found.logs_without_record == 1
    assert await node.runs.sweep() == 0
    soon = await nodes.node(keeps_up=False)
    soon.runs.audit._retention.kept = timedelta(seconds=-1)
    other = new_run_id()
    await nodes.stores.log.open(other, Token(1))
    await soon.runs.audit.compare_logs()
    assert await node.runs.sweep() == 1
    inventory = await nodes.stores.log.inventory(None, limit=100)
    assert [entry.run_id for entry in inventory.entries] == [stranger]


@pytest.mark.promise("P7", "P9")
async def test_a_commit_that_lands_after_its_sender_was_refused_leaves_no_active_run(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: the connection is silent while a send commits, and goes on later."""
    node = await nodes.node(lease_seconds=5)
    conversation = await nodes.stores.conversation()
    send = nodes.stores.send(conversation, "one two", otid="mine")
    run = node.runs._sends._new_run(send, "scripted/echo")
    await nodes.stores.records.runs.create(DEFAULT_TENANT, run, None, [])
    await eventually(lambda: ended(nodes, run.id))
    assert node.runs.audit.found.runs_without_driver == 1
    await nodes.stores.assert_free(conversation)


@pytest.mark.promise("P9")
async def test_a_send_whose_commit_lands_after_the_timeout_gets_its_run(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: the COMMIT is held back until the connection is given up, and lands during the retry."""
    node = await nodes.node()
    conversation = await nodes.stores.conversation()
    send = nodes.stores.send(conversation, "one two", otid="mine")
    async with held_commits(nodes.database_url) as commits:
        with monkeypatch.context() as patched:
            patched.setattr(bounded, "SILENCE_SECONDS", SILENCE_SECONDS)
            sending = asyncio.create_task(node.runs.send(send))
            await eventually(commits.are_held)
            await eventually(lambda: node.faults.calls["runs.create"] > 1 or sending.done())
        # The run itself may find the store as slow as a busy machine makes it.
        await commits.let_go()
        run = await node.runs.wait_until_settled(await sending)
        again = await node.runs.send(send)
    assert run.status is RunStatus.COMPLETED
    assert again.id == run.id
    assert await nodes.stores.active_runs() == []


@pytest.mark.promise("P7", "P9")
async def test_a_commit_that_lands_after_its_send_was_refused_blocks_no_conversation(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: the COMMIT is held back until nobody waits for it any more, and lands then."""
    node = await nodes.node(lease_seconds=3)
    conversation = await nodes.stores.conversation()
    send = nodes.stores.send(conversation, "one two", otid="mine")
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(backoff, "APPEND_RETRY_SECONDS", SILENCE_SECONDS)
    async with held_commits(nodes.database_url) as commits:
        with pytest.raises(StoreUnavailableError):
            await node.runs.send(send)
        await eventually(lambda: not node.runs.has_pending_recoveries)
        assert await commits.are_held()
        await commits.let_go()
        await eventually(lambda: node.runs.audit.found.runs_without_driver == 1)
        await eventually(lambda: has_no_active_run(nodes))
        again = await node.runs.send(send)
        assert again.status is RunStatus.FAILED
        await nodes.stores.assert_free(conversation)


async def has_no_active_run(nodes: Nodes) -> bool:
    return await nodes.stores.active_runs() == []


async def ended(nodes: Nodes, run_id: str) -> bool:
    return all(run.id != run_id for run in await nodes.stores.active_runs())
