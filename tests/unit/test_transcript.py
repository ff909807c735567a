"""A run's events fold into the messages that its conversation keeps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from reattach.domain.events import Event, Usage
from reattach.domain.ids import Seq, new_agent_id
from reattach.domain.messages import (
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, StepFinished
from reattach.records.base import Settlement, Thread
from reattach.runs.transcript import Transcript
from reattach.wire import letta
from tests.support.record_samples import a_run
from tests.unit.test_machine import played

NOW = datetime(2026, 11, 28, tzinfo=UTC)
DELTAS: list[Delta] = [
    TextPart("a"),
    ToolCallDelta("call", name="look", arguments="{}"),
    StepFinished(Usage()),
    ToolReturnPart("call", "look", "success", "1"),
    TextPart("b"),
]


def settled(events: list[Event], due: tuple[ToolCallPart, ...] = ()) -> Settlement:
    transcript = Transcript()
    transcript.due = due
    for event in events:
        transcript.add(event)
    return transcript.settlement(a_run(Thread(new_agent_id(), None)), transcript.steps_seen(), NOW)


def kept(settlement: Settlement) -> list[str]:
    """The calls, returns and texts that the conversation keeps of the answer."""
    parts = [part for message in settlement.messages for part in message.parts]
    return [
        part.tool_call_id if isinstance(part, ToolCallPart | ToolReturnPart) else part.text
        for part in parts
        if isinstance(part, ToolCallPart | ToolReturnPart | TextPart)
    ][1:]


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        (set(), ["a", "call", "call", "b"]),
        ({"tool_call_message"}, ["a", "b"]),
        ({"tool_return_message"}, ["a", "call", "b", "call"]),
        ({"tool_call_message", "tool_return_message"}, ["a", "b"]),
    ],
)
def test_a_log_without_the_calls_leaves_no_return_without_its_call(
    hidden: set[str], expected: list[str]
) -> None:
    """C13: folded from a log that was asked to leave out messages, after a crash."""
    events = [one for one in played(DELTAS) if letta.message_type(one) not in hidden]

    assert kept(settled(events)) == expected


def test_the_return_of_a_call_of_the_run_before_is_kept() -> None:
    """C13: the call that an approval let run is in an earlier message."""
    events = played([ToolReturnPart("due", "look", "success", "1"), TextPart("b")])

    assert kept(settled(events, (ToolCallPart("due", "look", "{}"),))) == ["due", "b"]


def test_a_step_of_more_parts_than_otids_can_name_is_read_back_in_order() -> None:
    """A1: what is read back from the log is what was written."""
    deltas: list[Delta] = []
    for number in range(200):
        deltas += [ReasoningPart(f"r{number} "), TextPart(f"t{number} ")]
    events = played(deltas)
    frames = [letta.encode(event, Seq(seq), "run") for seq, event in enumerate(events, 1)]

    read = [letta.decode(frame) for frame in frames]

    assert read == events
    live, recovered = settled(events), settled(read)
    assert [(one.id, one.parts) for one in live.messages[1:]] == [
        (one.id, one.parts) for one in recovered.messages[1:]
    ]
    parts = [part for one in live.messages[1:] for part in one.parts]
    assert "".join(one.text for one in parts if isinstance(one, TextPart)) == "".join(
        f"t{number} " for number in range(200)
    )


def test_calls_that_wait_after_other_parts_are_read_back_from_the_log() -> None:
    """A1: a request for approval has no part number in its frame."""
    deltas: list[Delta] = [
        TextPart("a"),
        ToolCallDelta("call", name="look", needs_approval=True),
        ToolCallDelta("call", arguments="{}", needs_approval=True),
        TextPart("b"),
    ]
    for stream_tokens in (True, False):
        events = played(deltas, stream_tokens=stream_tokens)
        read = [letta.decode(letta.encode(event, Seq(1), "run")) for event in events]
        assert kept(settled(read)) == kept(settled(events)) == ["a", "call", "b"]
