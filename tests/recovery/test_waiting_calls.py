"""Crashes of processes that have requested client calls or that handle their answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reattach.domain.approvals import PendingApproval
from reattach.domain.clock import SystemClock
from reattach.domain.events import StopReason
from reattach.domain.ids import DEFAULT_TENANT, new_message_id
from reattach.domain.messages import Message, Role, ToolReturnPart
from reattach.records.base import Conversation, Thread
from tests.recovery.test_boundaries import die_working
from tests.support.stores import Stores

ASK = "[client_tool=look][chunks=0]"


async def pending(stores: Stores, conversation: Conversation) -> PendingApproval | None:
    thread = Thread(conversation.agent_id, conversation.id)
    return await stores.records.messages.pending(DEFAULT_TENANT, thread)


def answer_to(waits: PendingApproval, output: str = "42") -> Message:
    returns = [ToolReturnPart(call.tool_call_id, "", "success", output) for call in waits.waiting]
    return Message(
        id=new_message_id(),
        role=Role.APPROVAL,
        parts=tuple(returns),
        created_at=SystemClock().now(),
    )


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("end", ["after log.close", "before runs.settle", "after runs.settle"])
async def test_calls_still_wait_after_a_crash_of_the_process_that_requested_them(
    stores: Stores, end: str
) -> None:
    conversation = await stores.conversation()
    run, _ = await die_working(stores, conversation, end, text=ASK)
    service = stores.service()
    await service.start()
    assert (await stores.run(run)).stop_reason is StopReason.REQUIRES_APPROVAL
    waits = await pending(stores, conversation)
    assert waits is not None
    assert [call.arguments for call in waits.waiting] == ['{"n": 1}']
    send = replace(stores.send(conversation, ""), messages=(answer_to(waits),))
    answered = await service.wait_until_settled(await service.send(send))
    assert answered.stop_reason is StopReason.END_TURN
    assert (await stores.kept(conversation))[-1] == (Role.ASSISTANT, "look success: 42\n")


@pytest.mark.promise("P7")
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_call_that_was_only_partly_requested_at_the_crash_does_not_wait(
    stores: Stores, nth: int
) -> None:
    conversation = await stores.conversation()
    await die_working(stores, conversation, "after log.append", nth, text=f"{ASK}[hang=2]")
    await stores.service().start()
    assert await pending(stores, conversation) is None
    await stores.assert_free(conversation)


@pytest.mark.promise("P7", "P9")
@pytest.mark.usefixtures("contexts_read_apart")
async def test_an_answer_whose_process_dies_before_any_output_can_be_sent_again(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    service = stores.service()
    asked = await service.wait_until_settled(await service.send(stores.send(conversation, ASK)))
    assert asked.stop_reason is StopReason.REQUIRES_APPROVAL
    waits = await pending(stores, conversation)
    assert waits is not None
    messages: Any = (answer_to(waits),)
    run, _ = await die_working(
        stores, conversation, "before messages.context", text="", messages=messages
    )
    again = stores.service()
    await again.start()
    assert (await stores.run(run)).stop_reason is StopReason.ERROR
    assert await pending(stores, conversation) == waits
    send = replace(stores.send(conversation, ""), messages=(answer_to(waits, "43"),))
    await again.wait_until_settled(await again.send(send))
    assert (await stores.kept(conversation))[-1] == (Role.ASSISTANT, "look success: 43\n")
