"""Pending approvals of conversations, as every process reads them from the records."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reattach.domain.errors import (
    ConversationBusyError,
    NoPendingApprovalError,
    NotFoundError,
    PendingApprovalError,
    ToolCallIdsError,
)
from reattach.domain.ids import RunId, new_message_id, new_step_id
from reattach.domain.messages import ApprovalPart, Message, Role, ToolCallPart, ToolReturnPart
from reattach.records.base import Run, RunKnown, Thread
from reattach.records.records import Records
from reattach.records.runs.created import RunCreated
from tests.support.record_samples import (
    OURS,
    THEIRS,
    World,
    a_conversation,
    a_key,
    a_message,
    a_run,
    a_settlement,
    a_system_message,
    at,
    ids,
)

LOOK = ToolCallPart("call-1", "look", "{}", needs_approval=True)
PAY = ToolCallPart("call-2", "pay", "{}", needs_approval=True)
COUNT = ToolCallPart("call-3", "count", "{}")


def returned(call: ToolCallPart, output: str = "42") -> ToolReturnPart:
    return ToolReturnPart(call.tool_call_id, "", "success", output)


def an_answer(*parts: ToolReturnPart | ApprovalPart) -> Message:
    return Message(id=new_message_id(), role=Role.APPROVAL, parts=parts, created_at=at(6))


async def a_request(
    world: World, *calls: ToolCallPart, thread: Thread | None = None
) -> tuple[Run, Message]:
    """Create a run that ended with tool calls waiting for approval."""
    run = await world.start(thread)
    request = Message(
        id=new_message_id(),
        role=Role.ASSISTANT,
        parts=calls or (LOOK,),
        created_at=at(1),
        run_id=run.id,
        step_id=new_step_id(),
    )
    sent = replace_run(run.input[0], run.id)
    assert await world.records.runs.settle(run.id, a_settlement(sent, request))
    return run, request


def replace_run(message: Message, run_id: RunId) -> Message:
    return a_message(message.text, run_id=run_id)


async def sent(
    records: Records, thread: Thread, *messages: Message, key: Any = None, otids: Any = ()
) -> RunCreated | RunKnown:
    return await records.runs.create(OURS, a_run(thread, input=messages), key, otids)


async def test_calls_that_wait_for_approval_are_pending_for_every_process(
    world: World, other_process: Records
) -> None:
    run, request = await a_request(world, COUNT, LOOK, PAY)
    pending = await other_process.messages.pending(OURS, world.thread)
    assert pending is not None
    assert (pending.request, pending.waiting, pending.allowed) == (request, (LOOK, PAY), (COUNT,))
    assert await world.records.messages.pending(OURS, world.default) is None
    with pytest.raises(NotFoundError):
        await world.records.messages.pending(THEIRS, world.thread)
    with pytest.raises(PendingApprovalError) as refused:
        await sent(other_process, world.thread, a_message("hm"), key=a_key("o"), otids=["o"])
    assert refused.value.extra == {
        "pending_request_id": request.id,
        "tool_call_ids": ["call-1", "call-2"],
        "run_id": run.id,
    }
    assert await world.records.runs.active(OURS, world.thread) is None
    assert await world.records.runs.newest_by_otid(OURS, "o") is None
    assert isinstance(await sent(other_process, world.default, a_message("hm")), RunCreated)


async def test_an_answer_becomes_the_input_of_its_run_with_its_tool_returns(
    world: World,
) -> None:
    _, request = await a_request(world, LOOK, PAY)
    answer = an_answer(ApprovalPart("call-2", approve=False), returned(LOOK))
    also = a_message("and this")
    outcome = await sent(world.records, world.thread, answer, also)
    assert isinstance(outcome, RunCreated)
    approval, returns, user = outcome.run.input
    assert (approval.id, user) == (answer.id, also)
    assert approval.parts == (answer.parts[0], replace_name(returned(LOOK), "look"))
    assert (returns.role, returns.step_id) == (Role.TOOL, request.step_id)
    assert returns.parts == (
        replace_name(returned(LOOK), "look"),
        ToolReturnPart("call-2", "pay", "error", "The user denied this call."),
    )
    assert await world.records.runs.get(OURS, outcome.run.id) == outcome.run
    assert await world.records.messages.pending(OURS, world.thread) is not None
    settled = a_settlement(*outcome.run.input)
    assert await world.records.runs.settle(outcome.run.id, settled)
    assert await world.records.messages.pending(OURS, world.thread) is None


def replace_name(part: ToolReturnPart, name: str) -> ToolReturnPart:
    return ToolReturnPart(part.tool_call_id, name, part.status, part.output)


async def test_a_wrong_answer_creates_nothing(world: World) -> None:
    with pytest.raises(NoPendingApprovalError):
        await sent(world.records, world.thread, an_answer(returned(LOOK)))
    await a_request(world, LOOK)
    for parts in ((), (returned(PAY),), (returned(LOOK), returned(PAY))):
        with pytest.raises(ToolCallIdsError):
            await sent(world.records, world.thread, an_answer(*parts))
    assert await world.records.runs.active(OURS, world.thread) is None


async def test_a_repeated_answer_returns_its_run_during_the_run_and_after_it(
    world: World, other_process: Records
) -> None:
    await a_request(world)
    first = await sent(world.records, world.thread, an_answer(returned(LOOK)))
    again = an_answer(returned(LOOK, "43"))
    assert await sent(other_process, world.thread, again) == RunKnown(first.run)
    with pytest.raises(ConversationBusyError):
        await sent(other_process, world.thread, an_answer(returned(PAY)))
    assert await world.records.runs.settle(first.run.id, a_settlement(*first.run.input))
    known = await sent(other_process, world.thread, again)
    assert isinstance(known, RunKnown)
    assert known.run.id == first.run.id
    with pytest.raises(NoPendingApprovalError):
        await sent(other_process, world.thread, again, a_message("and that"))
    with pytest.raises(NoPendingApprovalError):
        await sent(other_process, world.default, again)


async def test_a_call_id_that_is_used_again_needs_a_new_answer(world: World) -> None:
    await a_request(world)
    first = await sent(world.records, world.thread, an_answer(returned(LOOK)))
    assert await world.records.runs.settle(first.run.id, a_settlement(*first.run.input))
    await a_request(world)
    second = await sent(world.records, world.thread, an_answer(returned(LOOK)))
    assert isinstance(second, RunCreated)
    assert second.run.id != first.run.id


async def test_concurrent_answers_in_several_processes_create_one_run(
    world: World, other_process: Records
) -> None:
    await a_request(world)
    outcomes = await asyncio.gather(
        *(
            sent(records, world.thread, an_answer(returned(LOOK, str(number))))
            for number in range(4)
            for records in (world.records, other_process)
        )
    )
    assert len({outcome.run.id for outcome in outcomes}) == 1
    assert sum(isinstance(outcome, RunCreated) for outcome in outcomes) == 1


async def test_a_user_message_is_refused_while_an_approval_is_pending(
    world: World, other_process: Records
) -> None:
    run = await world.start()
    request = Message(
        id=new_message_id(),
        role=Role.ASSISTANT,
        parts=(LOOK,),
        created_at=at(1),
        run_id=run.id,
        step_id=new_step_id(),
    )

    async def send() -> object:
        while True:
            try:
                return await sent(other_process, world.thread, a_message("hm"))
            except ConversationBusyError:
                continue
            except PendingApprovalError as refused:
                return refused

    sending = asyncio.create_task(send())
    assert await world.records.runs.settle(run.id, a_settlement(request))
    async with asyncio.timeout(20):
        assert isinstance(await sending, PendingApprovalError)


async def test_cancelling_a_pending_approval_adds_its_returns_once(
    world: World, other_process: Records
) -> None:
    run, request = await a_request(world, COUNT, LOOK)
    messages = other_process.messages
    other_run = await a_request(world, thread=world.default)
    assert await messages.cancel_pending(OURS, world.thread, at(9), run_id=other_run[0].id) is None
    with pytest.raises(NotFoundError):
        await messages.cancel_pending(THEIRS, world.thread, at(9))
    cancelled = await messages.cancel_pending(OURS, world.thread, at(9), run_id=run.id)
    assert cancelled is not None
    assert cancelled.request == request
    assert await messages.cancel_pending(OURS, world.thread, at(9)) is None
    last = (await messages.history(OURS, world.thread))[-1]
    assert (last.role, last.run_id, last.step_id) == (Role.TOOL, run.id, request.step_id)
    assert [
        (part.tool_call_id, part.status) for part in last.parts if isinstance(part, ToolReturnPart)
    ] == [("call-3", "error"), ("call-1", "error")]
    assert await messages.pending(OURS, world.default) is not None
    assert isinstance(await sent(world.records, world.thread, a_message("hm")), RunCreated)


async def test_a_pending_approval_is_not_cancelled_while_it_is_being_answered(world: World) -> None:
    await a_request(world)
    await sent(world.records, world.thread, an_answer(returned(LOOK)))
    before = ids(await world.records.messages.history(OURS, world.thread))
    assert await world.records.messages.cancel_pending(OURS, world.thread, at(9)) is None
    assert ids(await world.records.messages.history(OURS, world.thread)) == before


async def test_a_fork_has_the_pending_approval_of_its_source_at_that_message(world: World) -> None:
    _, request = await a_request(world)
    first = await sent(world.records, world.thread, an_answer(returned(LOOK)))
    assert await world.records.runs.settle(first.run.id, a_settlement(*first.run.input))
    records = world.records.conversations
    for up_to, waits in ((request.id, True), (first.run.input[0].id, True), (None, False)):
        new = a_conversation(world.agent.id)
        fork = await records.fork(OURS, world.thread, new, a_system_message(), up_to=up_to)
        pending = await world.records.messages.pending(OURS, Thread(world.agent.id, fork.id))
        assert (pending is not None) is waits
