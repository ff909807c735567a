"""Crashes while a tool runs: its call is recorded and never repeated automatically."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from reattach.domain.approvals import pending_approval
from reattach.domain.clock import SystemClock
from reattach.domain.errors import NoPendingApprovalError
from reattach.domain.events import Output, StopReason
from reattach.domain.ids import DEFAULT_TENANT, RunId, new_message_id
from reattach.domain.limits import ENGINE_STOP_SECONDS
from reattach.domain.messages import (
    ApprovalPart,
    Message,
    Role,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, ToolStarting, Turn
from reattach.engine.function import FunctionEngine
from reattach.records.base import Conversation, Run, Thread
from reattach.runs.service import Send
from reattach.tools.base import Tool, Toolbox
from reattach.wire import letta
from tests.support.faulty_stores import FaultyLog, Gate, Life, Outage, faulty_records
from tests.support.stores import Stores

WAIT_SECONDS = ENGINE_STOP_SECONDS * 5


@dataclass
class Launch(Tool):
    """A tool that counts its calls, runs ``during`` in each, and hangs if ``hangs`` is set."""

    during: Callable[[], Any] = lambda: None
    requires_approval: bool = False
    hangs: bool = True
    name: str = "launch"
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object"})
    kind: Literal["custom", "external_mcp"] = "custom"
    calls: int = 0

    async def call(self, arguments: str) -> str:
        self.calls += 1
        self.during()
        if self.hangs:
            await asyncio.Event().wait()
        return "launched"


def sent(stores: Stores, conversation: Conversation, *messages: Message, text: str = "") -> Send:
    agent = stores.agent.with_tools({"launch": None})
    send = replace(stores.send(conversation, text or "[tool=launch]"), agent=agent)
    return replace(send, messages=messages) if messages else send


async def history(stores: Stores, conversation: Conversation) -> list[Message]:
    thread = Thread(conversation.agent_id, conversation.id)
    return list(await stores.records.messages.history(DEFAULT_TENANT, thread))


async def died(stores: Stores, life: Life, tool: Tool, send: Send) -> Run:
    """Let a process die at the end of ``life``, and return its run."""
    service = stores.service_upon(life, toolbox=Toolbox([tool]))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(send)
        await life.ended.wait()
    return run


async def recovered(stores: Stores, tool: Tool, run: Run) -> None:
    service = stores.service(toolbox=Toolbox([tool]))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
    assert (await stores.run(run)).stop_reason is StopReason.ERROR


def returns(messages: list[Message]) -> list[tuple[str, str]]:
    parts = [part for message in messages for part in message.parts]
    return [(one.status, one.output) for one in parts if isinstance(one, ToolReturnPart)]


@pytest.mark.promise("P3", "P17")
@pytest.mark.parametrize("stream_tokens", [False, True])
async def test_the_call_is_in_the_log_before_its_tool_runs(
    stores: Stores, stream_tokens: bool
) -> None:
    gate = Gate("log.append")
    tool = Launch(hangs=False)
    conversation = await stores.conversation()
    service = stores.service(log=FaultyLog(stores.log, gate), toolbox=Toolbox([tool]))
    send = sent(stores, conversation)
    send = replace(send, representation=replace(send.representation, stream_tokens=stream_tokens))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(send)
        await gate.waiting.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert tool.calls == 0
        assert await stores.frames(run) == []
        gate.opened.set()
        await service.wait_until_settled(run)
    assert tool.calls == 1
    events = [letta.decode(frame) for frame in await stores.frames(run)]
    assert isinstance(events[0], Output)
    assert isinstance(events[0].parts[0], ToolCallDelta | ToolCallPart)


@pytest.mark.promise("P7")
async def test_a_run_whose_process_died_during_a_tool_reports_its_outcome_as_unknown(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    life = Life(None)
    tool = Launch(life.ended.set)
    run = await died(stores, life, tool, sent(stores, conversation))
    await recovered(stores, tool, run)
    [(status, output)] = returns(await history(stores, conversation))
    assert status == "error"
    assert output.endswith("whether it did its work is not known.")
    await stores.assert_free(conversation)
    assert tool.calls == 1


@pytest.mark.promise("P7")
async def test_a_run_whose_process_died_after_its_tool_returned_has_the_return(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    life = Life(None)

    def die_soon() -> None:
        life._end = "after log.append"

    tool = Launch(die_soon, hangs=False)
    run = await died(stores, life, tool, sent(stores, conversation))
    await recovered(stores, tool, run)
    assert returns(await history(stores, conversation)) == [("success", "launched")]
    await stores.assert_free(conversation)
    assert tool.calls == 1


async def approval_of(
    stores: Stores, conversation: Conversation, tool: Tool
) -> tuple[Message, list[ToolCallPart]]:
    """Create a waiting call of the tool, and return the message that approves it."""
    service = stores.service(toolbox=Toolbox([tool]))
    asked = await service.wait_until_settled(await service.send(sent(stores, conversation)))
    assert asked.stop_reason is StopReason.REQUIRES_APPROVAL
    pending = pending_approval(await history(stores, conversation))
    assert pending is not None
    parts = tuple(ApprovalPart(call.tool_call_id, approve=True) for call in pending.waiting)
    now = SystemClock().now()
    answer = Message(id=new_message_id(), role=Role.APPROVAL, parts=parts, created_at=now)
    return answer, list(pending.waiting)


@pytest.mark.promise("P7")
async def test_an_approved_call_whose_process_died_during_it_does_not_wait_again(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    life = Life(None)
    tool = Launch(life.ended.set, requires_approval=True)
    answer, waiting = await approval_of(stores, conversation, tool)
    assert tool.calls == 0
    run = await died(stores, life, tool, sent(stores, conversation, answer))
    await recovered(stores, tool, run)
    messages = await history(stores, conversation)
    assert pending_approval(messages) is None
    [(status, output)] = returns(messages)
    assert status == "error"
    assert output.endswith("whether it did its work is not known.")
    service = stores.service(toolbox=Toolbox([tool]))
    with pytest.raises(NoPendingApprovalError):
        await service.send(sent(stores, conversation, _another(answer, waiting)))
    await stores.assert_free(conversation)
    assert tool.calls == 1


# Crashes just before a tool begins, or before that is recorded.


@pytest.mark.promise("P7", "P17")
@pytest.mark.parametrize(
    ("moment", "reported"),
    [
        ("before runs.note_begun", "the tool did not run."),
        ("after runs.note_begun", "whether it did its work is not known."),
    ],
)
async def test_a_call_is_reported_as_unknown_only_if_its_tool_may_have_begun(
    stores: Stores, moment: str, reported: str
) -> None:
    conversation = await stores.conversation()
    tool = Launch()
    run = await died(stores, Life(moment), tool, sent(stores, conversation))
    assert tool.calls == 0
    await recovered(stores, tool, run)
    [(status, output)] = returns(await history(stores, conversation))
    assert status == "error"
    assert output.endswith(reported)
    await stores.assert_free(conversation)
    assert tool.calls == 0


@pytest.mark.promise("P7", "P17")
async def test_an_approved_call_whose_tool_did_not_begin_waits_again_and_runs_once(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    tool = Launch(requires_approval=True, hangs=False)
    answer, waiting = await approval_of(stores, conversation, tool)
    run = await died(
        stores, Life("before runs.note_begun"), tool, sent(stores, conversation, answer)
    )
    await recovered(stores, tool, run)
    messages = await history(stores, conversation)
    assert returns(messages) == []
    pending = pending_approval(messages)
    assert pending is not None
    assert list(pending.waiting) == waiting
    assert tool.calls == 0
    again = sent_anew(answer)
    service = stores.service(toolbox=Toolbox([tool]))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.wait_until_settled(await service.send(sent(stores, conversation, again)))
    assert tool.calls == 1
    assert ("success", "launched") in returns(await history(stores, conversation))


@pytest.mark.promise("P7", "P17")
async def test_an_approved_call_whose_tool_may_have_begun_does_not_wait_again(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    tool = Launch(requires_approval=True)
    answer, _ = await approval_of(stores, conversation, tool)
    run = await died(
        stores, Life("after runs.note_begun"), tool, sent(stores, conversation, answer)
    )
    await recovered(stores, tool, run)
    messages = await history(stores, conversation)
    assert pending_approval(messages) is None
    [(_, output)] = returns(messages)
    assert output.endswith("whether it did its work is not known.")
    assert tool.calls == 0
    await stores.assert_free(conversation)


@pytest.mark.promise("P7", "P17")
async def test_a_process_whose_run_was_taken_over_begins_no_tool(stores: Stores) -> None:
    conversation = await stores.conversation()
    tool = Launch(hangs=False)
    gate = Gate("runs.note_begun")
    zombie = stores.service(records=faulty_records(stores.records, gate), toolbox=Toolbox([tool]))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await zombie.send(sent(stores, conversation))
        await gate.waiting.wait()
        assert await stores.records.runs.take_over([(run.id, run.token)], "another")
        gate.opened.set()
        await zombie.open_runs.drivers[run.id].done.wait()
    assert tool.calls == 0


@pytest.mark.promise("P17")
@pytest.mark.parametrize("announces", [False, True])
async def test_calls_of_an_engine_that_does_not_announce_tools_are_reported_as_unknown(
    stores: Stores, announces: bool
) -> None:
    life = Life(None)

    async def own(turn: Turn) -> AsyncIterator[Delta]:
        yield ToolCallDelta("said", name="launch", arguments="{}")
        yield ToolCallDelta("not said", name="launch", arguments="{}")
        yield ToolStarting("said")
        life.ended.set()
        await asyncio.Event().wait()

    engine = FunctionEngine({"own": own})
    engine.announces_tools = announces
    service = stores.service_upon(life, engine=engine)
    conversation = await stores.conversation()
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(stores.send(conversation, "go", model="function/own"))
        await life.ended.wait()
    await recovered(stores, Launch(), run)
    unknown = [
        output.endswith("is not known.")
        for _, output in returns(await history(stores, conversation))
    ]
    assert unknown == [True, not announces]


@pytest.mark.promise("P17")
async def test_a_tool_does_not_run_while_the_records_are_unavailable(stores: Stores) -> None:
    conversation = await stores.conversation()
    tool = Launch(hangs=False)
    outage = Outage("runs.note_begun")
    service = stores.service(
        records=faulty_records(stores.records, outage), toolbox=Toolbox([tool])
    )
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.wait_until_settled(await service.send(sent(stores, conversation)))
    assert run.stop_reason is StopReason.ERROR
    assert run.error is not None
    assert "the tool did not run" in run.error.message
    [(status, output)] = returns(await history(stores, conversation))
    assert (status, output.endswith("the tool did not run.")) == ("error", True)
    assert tool.calls == 0


@pytest.mark.promise("P8")
async def test_an_approved_call_that_is_cancelled_while_it_runs_does_not_wait_again(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    began = asyncio.Event()
    tool = Launch(began.set, requires_approval=True)
    answer, _ = await approval_of(stores, conversation, tool)
    service = stores.service(toolbox=Toolbox([tool]))
    async with asyncio.timeout(WAIT_SECONDS):
        run = await service.send(sent(stores, conversation, answer))
        await began.wait()
        assert await service.cancel([run]) == {RunId(run.id): "cancelled"}
    messages = await history(stores, conversation)
    assert pending_approval(messages) is None
    assert [status for status, _ in returns(messages)] == ["error"]
    await stores.assert_free(conversation)


def sent_anew(answer: Message) -> Message:
    """The same decision in a new message."""
    return Message(
        id=new_message_id(), role=Role.APPROVAL, parts=answer.parts, created_at=answer.created_at
    )


def _another(answer: Message, waiting: list[ToolCallPart]) -> Message:
    """Another answer to other calls than the first, so that it is not taken for it."""
    parts = tuple(ApprovalPart(f"{call.tool_call_id}-x", approve=True) for call in waiting)
    return Message(
        id=new_message_id(), role=Role.APPROVAL, parts=parts, created_at=answer.created_at
    )
