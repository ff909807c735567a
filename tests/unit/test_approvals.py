"""The calls that a conversation waits for, and the run's input that an answer becomes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from reattach.domain.approvals import has_answer, pending_approval, resolve_input, same_answer
from reattach.domain.errors import ToolCallIdsError
from reattach.domain.events import Output, Place, Stopped, StopReason
from reattach.domain.ids import new_agent_id, new_message_id, new_step_id
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    Message,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.records.base import Thread
from reattach.runs.transcript import Transcript
from tests.support.record_samples import NOON, a_run

LOOK = ToolCallPart("1", "look", "{}", needs_approval=True)
PAY = ToolCallPart("2", "pay", "{}", needs_approval=True)
COUNT = ToolCallPart("3", "count", "{}")
NOW = datetime(2026, 11, 22, 13, 14, 24, tzinfo=UTC)


def said(role: Role, *parts: ContentPart, **rest: Any) -> Message:
    return Message(id=new_message_id(), role=role, parts=parts, created_at=NOW, **rest)


def returns(*call_ids: str) -> Message:
    return said(Role.TOOL, *(ToolReturnPart(one, "x", "success", "y") for one in call_ids))


@pytest.mark.parametrize(
    ("after", "waits"),
    [
        ([], ["1", "2"]),
        ([returns("3")], ["1", "2"]),
        ([returns("1")], ["2"]),
        ([returns("1", "2")], []),
        ([returns("1"), said(Role.APPROVAL, ApprovalPart("2", approve=True))], ["2"]),
        ([said(Role.USER, TextPart("never mind"))], []),
        ([returns("1"), said(Role.ASSISTANT, TextPart("so"))], []),
    ],
    ids=["none", "allowed", "one", "both", "approved", "user", "model"],
)
def test_the_calls_that_wait_are_those_of_the_last_thing_said_without_a_return(
    after: list[Message], waits: list[str]
) -> None:
    request = said(Role.ASSISTANT, TextPart("I look."), COUNT, LOOK, PAY)
    pending = pending_approval([said(Role.USER, TextPart("hi")), request, *after])
    assert (pending.tool_call_ids if pending else []) == waits


def test_calls_that_need_no_approval_are_due_with_those_that_got_it() -> None:
    pending = pending_approval([said(Role.ASSISTANT, COUNT, LOOK, PAY)])
    assert pending is not None
    denied, approved = ApprovalPart("1", approve=False), ApprovalPart("2", approve=True)
    assert pending.due([said(Role.APPROVAL, denied, approved)]) == [COUNT, PAY]


def test_one_word_of_the_old_form_is_a_decision_on_each_call() -> None:
    pending = pending_approval([said(Role.ASSISTANT, LOOK, PAY)])
    answer = said(Role.APPROVAL, ApprovalPart("", approve=False, reason="no", request_id="2"))
    approval, returns = resolve_input((answer,), pending)
    assert [(p.tool_call_id, p.reason) for p in approval.parts if isinstance(p, ApprovalPart)] == [
        ("1", "no"),
        ("2", "no"),
    ]
    assert [p.tool_call_id for p in returns.parts if isinstance(p, ToolReturnPart)] == ["1", "2"]
    stranger = said(Role.APPROVAL, ApprovalPart("", approve=True, request_id="message-other"))
    with pytest.raises(ToolCallIdsError, match="received"):
        resolve_input((stranger,), pending)


def test_what_an_error_repeats_of_wrong_ids_is_bounded() -> None:
    pending = pending_approval([said(Role.ASSISTANT, LOOK)])
    many = [ApprovalPart(f"{number}" * 400, approve=True) for number in range(10, 1000)]
    with pytest.raises(ToolCallIdsError) as refused:
        resolve_input((said(Role.APPROVAL, *many),), pending)
    assert len(refused.value.detail) < 15_000


def test_answers_are_the_same_if_they_decide_on_the_same_calls_with_the_same_messages() -> None:
    user = said(Role.USER, TextPart("and this"))
    one = [said(Role.APPROVAL, ApprovalPart("1", approve=True)), user]
    same = [said(Role.APPROVAL, ToolReturnPart("1", "", "error", "x")), returns("1"), user]
    assert same_answer(one, same)
    assert not same_answer(one, one[:1])
    assert not same_answer(one, [said(Role.APPROVAL, ApprovalPart("2", approve=True)), user])
    assert has_answer(one)
    assert not has_answer([user])


@pytest.mark.parametrize(
    ("reason", "needs_approval", "begun", "kept"),
    [
        (StopReason.REQUIRES_APPROVAL, True, None, None),
        (StopReason.CANCELLED, True, None, "the tool did not run."),
        (StopReason.ERROR, True, None, "the tool did not run."),
        (StopReason.ERROR, False, None, "whether it did its work is not known."),
        (StopReason.ERROR, False, ("2", "1"), "whether it did its work is not known."),
        (StopReason.ERROR, False, ("2",), "the tool did not run."),
        (StopReason.CANCELLED, False, (), "the tool did not run."),
        (StopReason.REQUIRES_APPROVAL, False, None, "whether it did its work is not known."),
    ],
)
def test_a_call_that_nobody_will_return_gets_a_return_that_says_so(
    reason: StopReason, needs_approval: bool, begun: tuple[str, ...] | None, kept: str | None
) -> None:
    step = new_step_id()

    def place(index: int = 0) -> Place:
        return Place(new_message_id(), step, index, NOW)

    transcript = Transcript()
    transcript.begun = begun
    calls = (
        ToolCallPart("1", "look", "{", needs_approval),
        ToolCallPart("2", "pay", "", needs_approval),
    )
    transcript.add(Output(place(), calls))
    transcript.add(Output(place(), (ToolReturnPart("2", "pay", "success", "paid"),)))
    transcript.add(Stopped(reason))
    run = a_run(Thread(new_agent_id(), None))
    messages = transcript.settlement(run, [], NOON).messages
    open_calls = [m for m in messages if m.role is Role.TOOL][1:]
    if kept is None:
        assert open_calls == []
    else:
        [returns] = open_calls
        [part] = returns.parts
        assert isinstance(part, ToolReturnPart)
        assert (part.tool_call_id, part.status, returns.step_id) == ("1", "error", step)
        assert part.output.endswith(kept)
