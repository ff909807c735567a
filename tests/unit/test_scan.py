"""Steps and tool calls as they are found in the frames of a log."""

from __future__ import annotations

from datetime import UTC, datetime

from reattach.domain.events import Event, Output, Place, Stopped, StopReason
from reattach.domain.ids import MessageId, Seq, StepId, new_message_id, new_step_id
from reattach.domain.messages import (
    Fragment,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.log.base import Slice
from reattach.runs.inspection import scan as scanning
from reattach.runs.inspection.scan import CallSpan, Scan, StepSpan
from reattach.wire.letta import encode

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
RUN = "run-1"


def output(step: StepId, *parts: Fragment, message: MessageId | None = None) -> Output:
    return Output(Place(message or new_message_id(), step, 0, NOON), parts)


def scanned(*events: Event | bytes) -> Scan:
    """A scan of frames that came in two slices."""
    scan = Scan(Seq(1))
    frames = [
        one if isinstance(one, bytes) else encode(one, Seq(seq), RUN)
        for seq, one in enumerate(events, 1)
    ]
    for first, some in ((1, frames[:2]), (3, frames[2:])):
        if some:
            scan.add(Slice(Seq(first), Seq(first + len(some) - 1), b"".join(some)))
    return scan


def test_a_slice_of_text_belongs_to_the_step_before_it_or_to_another_one() -> None:
    first, second = new_step_id(), new_step_id()
    words = [output(first, TextPart(f"{n}")) for n in range(6)]
    assert scanned(*words).steps == {first: StepSpan(Seq(1), Seq(6))}
    other = output(second, TextPart("other"))
    mixed = scanned(*words[:5], other)
    assert mixed.steps == {first: StepSpan(Seq(1), Seq(5)), second: StepSpan(Seq(6), Seq(6))}
    ended = scanned(*words[:5], Stopped(StopReason.END_TURN))
    assert ended.steps == {first: StepSpan(Seq(1), Seq(5))}
    assert ended.last_seq == 6


def test_calls_that_stream_in_parallel_are_joined_and_returned_one_by_one() -> None:
    step = new_step_id()
    scan = scanned(
        output(step, ToolCallDelta("a", "look")),
        output(step, ToolCallDelta("b", "read")),
        output(step, ToolCallDelta("a", "_up", "{}")),
        output(step, ToolReturnPart("b", "read", "error", "no")),
        output(step, ToolReturnPart("a", "look_up", "success", "yes")),
    )
    assert scan.calls == {
        "a": CallSpan("look_up", Seq(3), Seq(5), "success"),
        "b": CallSpan("read", Seq(2), Seq(4), "error"),
    }
    assert scan.steps == {step: StepSpan(Seq(1), Seq(3))}
    assert scan.last_seq == 5


def test_whole_calls_of_one_event_and_requests_for_approval_are_found() -> None:
    step = new_step_id()
    asked = ToolCallPart("c", "deploy", "{}", needs_approval=True)
    scan = scanned(
        output(step, ToolCallPart("a", "one", "{}"), ToolCallPart("b", "two", "{}")),
        output(step, asked),
        Stopped(StopReason.REQUIRES_APPROVAL),
    )
    assert [(key, call.began_seq) for key, call in scan.calls.items()] == [
        ("a", 1),
        ("b", 1),
        ("c", 2),
    ]
    assert [call.needs_approval for call in scan.calls.values()] == [False, False, True]


def test_a_return_of_an_earlier_run_has_no_beginning() -> None:
    scan = scanned(output(new_step_id(), ToolReturnPart("x", "deploy", "success", "done")))
    assert scan.calls == {"x": CallSpan("deploy", None, Seq(1), "success")}
    assert scan.steps == {}


def test_a_text_that_looks_like_a_call_or_step_is_text() -> None:
    step = new_step_id()
    trap = '"step_id":"step-2","message_type":"tool_call_message" \n\n'
    scan = scanned(output(step, TextPart(trap)))
    assert scan.calls == {}
    assert scan.steps == {step: StepSpan(Seq(1), Seq(1))}


def test_damaged_frames_are_passed_over() -> None:
    step = new_step_id()
    damaged = b'data: {"message_type":"tool_call_message","step_id":"\xff\n\n'
    scan = scanned(b"\x00\n\n", damaged, output(step, TextPart("on")))
    assert scan.calls == {}
    assert scan.steps == {step: StepSpan(Seq(3), Seq(3))}
    assert scan.last_seq == 3


def test_more_calls_than_are_shown_cost_no_memory() -> None:
    step = new_step_id()
    events = [
        output(step, ToolCallPart(f"call-{n}", "look", "{}"))
        for n in range(scanning.MAX_CALLS + 20)
    ]
    assert len(scanned(*events).calls) == scanning.MAX_CALLS
