"""Runs of one process that others follow, cancel and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import pytest

from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT
from reattach.domain.messages import Role
from reattach.records.base import Conversation, Run, Thread
from reattach.records.runs.notifications import NotificationsMissed
from reattach.runs.following.follow import Target
from tests.cluster.nodes import Node, Nodes
from tests.support.beats import beat
from tests.support.engines import SteppedEngine
from tests.support.faulty_stores import Faults, Gate
from tests.support.in_process_readers import Reader
from tests.support.received import end_of
from tests.support.stores import eventually

T = TypeVar("T")

CANCELLED = {"stop_reason": "cancelled", "error_type": None}
DIED = {"stop_reason": "error", "error_type": "stream_incomplete"}
FOR_EVER_SECONDS = 1000.0
"""A lease, and so a heartbeat interval, that is longer than any test."""


class ForgetfulLog(Faults):
    """A log without aliases, as on a Redis that was flushed."""

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        found = await super().around(step, call)
        return cast("T", None) if step == "log.find" else found


async def begun(
    nodes: Nodes, node: Node, text: str = "[hang=1]", otid: str | None = None
) -> tuple[Conversation, Run]:
    """Start a run on the node and wait for its first event."""
    conversation = await nodes.stores.conversation()
    run = await node.runs.send(nodes.stores.send(conversation, text, otid=otid))
    async with Reader(node.runs, run) as reader:
        await reader.until_seq(1)
    return conversation, run


async def found(node: Node, conversation: Conversation, run: Run, way: str) -> Run | Target:
    match way:
        case "run id":
            return await node.runs.by_id(DEFAULT_TENANT, run.id)
        case "otid":
            return await node.runs.target_by_otid(DEFAULT_TENANT, run.input[0].otid or "")
        case _:
            thread = Thread(conversation.agent_id, conversation.id)
            return await node.runs.active(DEFAULT_TENANT, thread)


@pytest.mark.promise("P1", "P4")
@pytest.mark.parametrize("way", ["run id", "otid", "conversation"])
async def test_a_run_is_resumed_through_another_process(nodes: Nodes, way: str) -> None:
    engine = SteppedEngine("one ", "two ", "three ")
    owner, other = await nodes.node(engine=engine), await nodes.node()
    conversation = await nodes.stores.conversation()
    run = await owner.runs.send(nodes.stores.send(conversation, "count"))
    engine.step()
    async with Reader(owner.runs, run) as reader:
        await reader.until_seq(1)
    target = await found(other, conversation, run, way)
    async with (
        Reader(other.runs, target, 1) as reader,
        Reader(other.runs, target) as whole,
        Reader(other.runs, target, 1, by_get=True) as page,
        Reader(other.runs, target, by_get=True) as whole_page,
    ):
        engine.step(3)
        received = await reader.to_end()
        frames = (await whole.to_end()).frames
        assert (await page.to_end()).frames == received.frames
        assert (await whole_page.to_end()).frames == frames
    assert (received.text, received.end()) == (
        "two three ",
        {"stop_reason": "end_turn", "error_type": None},
    )
    assert frames[1:] == received.frames
    assert frames == await nodes.stores.frames(run)
    assert (await nodes.stores.run(run)).status is RunStatus.COMPLETED


@pytest.mark.promise("S5")
async def test_a_resume_by_otid_of_a_live_run_does_not_query_the_records(nodes: Nodes) -> None:
    owner, other = await nodes.node(), await nodes.node(keeps_up=False, beats=False)
    _, run = await begun(nodes, owner, otid="mine")
    other.faults.calls.clear()
    target = await other.runs.target_by_otid(DEFAULT_TENANT, "mine")
    async with Reader(other.runs, target) as reader:
        await reader.until_seq(1)
        asked = {step for step in other.faults.calls if not step.startswith("log.")}
    assert target.run_id == run.id
    assert asked == set()


@pytest.mark.promise("S5")
async def test_a_resume_by_otid_finds_the_run_in_the_records_without_an_alias_in_the_log(
    nodes: Nodes,
) -> None:
    owner, other = await nodes.node(), await nodes.node(faults=ForgetfulLog())
    await begun(nodes, owner, otid="mine")
    target = await other.runs.target_by_otid(DEFAULT_TENANT, "mine")
    async with Reader(other.runs, target) as reader:
        await reader.until_seq(1)
    assert other.faults.calls["runs.target_by_otid"] == 1


@pytest.mark.promise("S5", "P4")
async def test_a_run_whose_log_is_not_open_yet_is_waited_for(nodes: Nodes) -> None:
    gate = Gate("log.open")
    owner, other = await nodes.node(faults=gate), await nodes.node()
    run = await owner.runs.send(nodes.stores.send(await nodes.stores.conversation(), "one two"))
    target = await other.runs.target_by_otid(DEFAULT_TENANT, run.input[0].otid or "")
    assert target.status is RunStatus.CREATED
    async with Reader(other.runs, target) as reader:
        async with asyncio.timeout(10):
            await gate.waiting.wait()
        gate.opened.set()
        received = await reader.to_end()
    assert reader.headers["x-run-status"] == "running"
    assert received.text == "one two"


@pytest.mark.promise("P3")
async def test_other_processes_show_the_end_only_once_it_is_in_the_records(nodes: Nodes) -> None:
    gate = Gate("runs.settle")
    owner, other = await nodes.node(faults=gate), await nodes.node()
    run = await owner.runs.send(nodes.stores.send(await nodes.stores.conversation(), "one two"))
    async with Reader(other.runs, run) as reader, Reader(other.runs, run, by_get=True) as page:
        async with asyncio.timeout(10):
            await gate.waiting.wait()
        await eventually(lambda: closed(nodes, run))
        for one in (reader, page):
            assert "stop_reason" not in one.received.kinds
        gate.opened.set()
        for one in (reader, page):
            assert (await one.to_end()).done
    assert (await nodes.stores.run(run)).status is RunStatus.COMPLETED


async def closed(nodes: Nodes, run: Run) -> bool:
    head = await nodes.stores.head(run)
    return head is not None and head.closed


@pytest.mark.promise("P3")
async def test_an_answer_as_json_waits_for_a_run_of_another_process(nodes: Nodes) -> None:
    engine = SteppedEngine("one ")
    owner, other = await nodes.node(engine=engine), await nodes.node()
    _, run = await begun_with(nodes, owner, engine)
    waiting = asyncio.create_task(other.runs.wait_until_settled(run))
    engine.step()
    async with asyncio.timeout(10):
        assert (await waiting).status is RunStatus.COMPLETED


async def begun_with(nodes: Nodes, node: Node, engine: SteppedEngine) -> tuple[Conversation, Run]:
    engine.step()
    return await begun(nodes, node, "count")


@pytest.mark.promise("P6")
@pytest.mark.parametrize("word", ["notification", "beat"])
async def test_a_cancel_reaches_the_owner_of_the_run(nodes: Nodes, word: str) -> None:
    """The cancel arrives by a notification, and without one by the next heartbeat."""
    engine = SteppedEngine("one ", "two ")
    if word == "notification":
        owner = await nodes.node(engine=engine, lease_seconds=FOR_EVER_SECONDS)
    else:
        owner = await nodes.node(engine=engine, lease_seconds=1, listens=False)
    other = await nodes.node()
    conversation, run = await begun_with(nodes, owner, engine)
    async with Reader(other.runs, run) as reader:
        assert await other.runs.cancel([run]) == {run.id: "cancelled"}
        received = await reader.to_end()
    assert (received.text, received.end()) == ("one ", CANCELLED)
    async with asyncio.timeout(10):
        await engine.closed.wait()
    assert await other.runs.cancel([run]) == {run.id: "cancelled"}
    await nodes.stores.assert_free(conversation)


@pytest.mark.promise("P9")
async def test_one_otid_creates_one_run_on_any_processes(nodes: Nodes) -> None:
    three = [await nodes.node() for _ in range(3)]
    for number in range(10):
        conversation = await nodes.stores.conversation()
        otid = f"otid-{number}"
        runs = await asyncio.gather(
            *(
                node.runs.send(nodes.stores.send(conversation, "one two", otid=otid))
                for node in three
            )
        )
        assert len({run.id for run in runs}) == 1
        for node, run in zip(three, runs, strict=True):
            async with Reader(node.runs, run) as reader:
                assert (await reader.to_end()).text == "one two"
        assert len(await nodes.stores.kept(conversation)) == 2


@pytest.mark.promise("P7")
async def test_the_run_of_a_silent_process_is_ended_by_another(nodes: Nodes) -> None:
    engine = SteppedEngine("one ", "two ")
    silent = await nodes.node(
        engine=engine, lease_seconds=1, beats=False, keeps_up=False, listens=False
    )
    other = await nodes.node(lease_seconds=1)
    conversation, run = await begun_with(nodes, silent, engine)
    async with Reader(other.runs, run) as reader:
        received = await reader.to_end()
    assert (received.text, received.end()) == ("one ", DIED)
    assert (await nodes.stores.run(run)).status is RunStatus.FAILED
    await nodes.stores.assert_free(conversation)
    # It resumes, and its next heartbeat reports that it was declared dead.
    was = silent.runs.ownership.owner
    await beat(silent.runs)
    async with asyncio.timeout(10):
        await engine.closed.wait()
        await silent.runs.wait_until_settled(run)
    assert silent.runs.ownership.owner != was
    assert end_of(await nodes.stores.frames(run)) == DIED
    # It owns its later runs.
    engine.step(3)
    _, later = await begun(nodes, silent, "count")
    assert (await silent.runs.wait_until_settled(later)).status is RunStatus.COMPLETED


@pytest.mark.promise("P7")
async def test_a_cancel_ends_the_run_of_a_dead_owner(nodes: Nodes) -> None:
    engine = SteppedEngine("one ")
    dead = await nodes.node(engine=engine, beats=False, keeps_up=False, listens=False)
    other = await nodes.node(keeps_up=False)
    conversation, run = await begun_with(nodes, dead, engine)
    assert await nodes.stores.records.owners.bury_all_but(other.runs.ownership.owner)
    assert await other.runs.cancel([run]) == {run.id: "cancelled"}
    assert end_of(await nodes.stores.frames(run)) == CANCELLED
    await nodes.stores.assert_free(conversation)


@pytest.mark.promise("P7")
async def test_several_processes_end_an_orphan_once(nodes: Nodes) -> None:
    engine = SteppedEngine("one ")
    dead = await nodes.node(engine=engine, beats=False, keeps_up=False, listens=False)
    others = [await nodes.node(keeps_up=False) for _ in range(3)]
    conversation, run = await begun_with(nodes, dead, engine)
    for other in others:
        await nodes.stores.records.owners.register(other.runs.ownership.owner, 15)
    async with asyncio.timeout(10):
        await nodes.stores.records.owners.bury_all_but("nobody")
        for other in others:
            await other.runs.ownership.register()
        await asyncio.gather(*(other.runs.recover() for other in others))
    frames = await nodes.stores.frames(run)
    assert end_of(frames) == DIED
    assert [b'"message_type":"stop_reason"' in frame for frame in frames].count(True) == 1
    assert await nodes.stores.kept(conversation) == [(Role.USER, "count"), (Role.ASSISTANT, "one ")]


@pytest.mark.promise("P15")
async def test_a_closing_process_disconnects_readers_of_other_processes_runs(nodes: Nodes) -> None:
    engine = SteppedEngine("one ", "two ")
    owner, leaving = await nodes.node(engine=engine), await nodes.node()
    _, run = await begun_with(nodes, owner, engine)
    async with (
        Reader(leaving.runs, run) as reader,
        Reader(leaving.runs, run, by_get=True) as page,
    ):
        for one in (reader, page):
            await one.until_seq(1)
        await leaving.runs.drain(5)
        received = await reader.to_end()
        assert not (await page.to_end()).done
    assert (reader.whole, reader.aborted) == (False, True)
    assert (page.whole, page.aborted) == (True, False)
    assert page.ids is not None
    assert page.ids.says_to_come_back
    assert not received.done
    engine.step(2)
    async with (
        Reader(owner.runs, run, received.cursor) as reader,
        Reader(owner.runs, run, received.cursor, by_get=True) as page,
    ):
        for one in (reader, page):
            assert (await one.to_end()).text == "two "


@pytest.mark.promise("P3")
async def test_an_end_whose_notification_was_missed_is_seen(nodes: Nodes) -> None:
    engine = SteppedEngine("one ")
    owner, deaf = await nodes.node(engine=engine), await nodes.node(listens=False)
    _, run = await begun_with(nodes, owner, engine)
    waiting = asyncio.create_task(deaf.runs.wait_until_settled(run))
    async with Reader(deaf.runs, run) as reader:
        engine.step()
        assert (await reader.to_end()).done
    deaf.runs.handle_notification(NotificationsMissed())
    async with asyncio.timeout(10):
        assert (await waiting).status is RunStatus.COMPLETED
