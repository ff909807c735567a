"""The audit on shared stores."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from reattach.domain.ids import DEFAULT_TENANT, new_run_id
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from tests.cluster.nodes import Nodes
from tests.support.in_process_readers import Reader
from tests.support.stores import eventually


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
    await nodes.stores.log.append(run.id, run.token, 1, frames[:1])
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
    await nodes.stores.log.open(stranger, 1)
    await node.runs.audit.compare_logs()
    assert node.runs.audit.found.logs_without_record == 1
    assert await node.runs.sweep() == 0
    soon = await nodes.node(keeps_up=False)
    soon.runs.audit._retention = timedelta(seconds=-1)
    other = new_run_id()
    await nodes.stores.log.open(other, 1)
    await soon.runs.audit.compare_logs()
    assert await node.runs.sweep() == 1
    inventory = await nodes.stores.log.inventory(None, limit=100)
    assert [entry.run_id for entry in inventory.entries] == [stranger]


@pytest.mark.promise("P7", "P9")
async def test_a_commit_that_lands_after_its_sender_was_refused_leaves_no_run_behind(
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


async def ended(nodes: Nodes, run_id: str) -> bool:
    return all(run.id != run_id for run in await nodes.stores.active_runs())
