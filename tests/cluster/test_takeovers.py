"""An answer goes on in another process when its owner is stopped or dies."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.events import StopReason
from reattach.log.base import Log
from reattach.records.base import Run
from reattach.runs.attempts.policy import ContinuePolicy
from tests.cluster.nodes import Nodes
from tests.recovery.test_continuing import events, said
from tests.support.stores import eventually

GOES_ON = ContinuePolicy()
WAIT_SECONDS = 20.0
TEXT = "".join(f"t{number} " for number in range(300))


async def has_events(log: Log, run: Run, least: int) -> bool:
    return (await log.head(run.id)).last_seq >= least


@pytest.mark.promise("P15", "P19")
async def test_another_process_goes_on_at_once_with_a_run_that_is_handed_over(
    nodes: Nodes,
) -> None:
    first, second = await nodes.node(policy=GOES_ON), await nodes.node(policy=GOES_ON)
    conversation = await nodes.stores.conversation()
    run = await first.runs.send(nodes.stores.send(conversation, "[chunks=300][rate=300]"))
    async with asyncio.timeout(WAIT_SECONDS):
        await eventually(lambda: has_events(first.log, run, 5))
        await first.runs.drain(0)
        ended = await second.runs.wait_until_settled(run)
    assert ended.stop_reason is StopReason.END_TURN
    assert [(one.interruption, one.way) for one in ended.attempts] == [("handover", "prefix")]
    assert said(await events(nodes.stores, run)) == [("TextPart", TEXT)]


@pytest.mark.promise("P7", "P19")
async def test_another_process_goes_on_with_a_run_whose_owner_lost_its_lease(nodes: Nodes) -> None:
    first = await nodes.node(policy=GOES_ON, beats=False, keeps_up=False, lease_seconds=1)
    second = await nodes.node(policy=GOES_ON, lease_seconds=1)
    conversation = await nodes.stores.conversation()
    run = await first.runs.send(nodes.stores.send(conversation, "[chunks=300][rate=100]"))
    async with asyncio.timeout(WAIT_SECONDS):
        ended = await second.runs.wait_until_settled(run)
    assert ended.stop_reason is StopReason.END_TURN
    assert [one.interruption for one in ended.attempts] == ["crash"]
    assert ended.owner == second.runs.ownership.owner
    assert said(await events(nodes.stores, run)) == [("TextPart", TEXT)]


@pytest.mark.promise("P9", "P15", "P19")
async def test_a_send_that_is_repeated_while_its_run_is_handed_over_finds_that_run(
    nodes: Nodes,
) -> None:
    first, second = await nodes.node(policy=GOES_ON), await nodes.node(policy=GOES_ON)
    conversation = await nodes.stores.conversation()
    text = "[chunks=300][rate=300]"
    send = nodes.stores.send(conversation, text, otid="mine", background=False)
    run = await first.runs.send(send)
    async with asyncio.timeout(WAIT_SECONDS):
        waiting = asyncio.create_task(first.runs.wait_until_settled(run))
        await eventually(lambda: has_events(first.log, run, 5))
        draining = asyncio.create_task(first.runs.drain(0))
        repeated = await asyncio.gather(*(node.runs.send(send) for node in (first, second)))
        await draining
        repeated.append(await waiting)  # It is released, although the run goes on.
        repeated.append(await second.runs.send(send))
        ended = await second.runs.wait_until_settled(repeated[-1])
    assert {one.id for one in repeated} == {run.id}
    assert ended.stop_reason is StopReason.END_TURN
    assert [one.interruption for one in ended.attempts] == ["handover"]
    assert said(await events(nodes.stores, run)) == [("TextPart", TEXT)]
