"""The course of a run, from deltas to events."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.clock import SystemClock
from reattach.domain.errors import ModelRateLimitError
from reattach.domain.events import Event, Failed, Output, Stopped, StopReason, Usage
from reattach.domain.messages import (
    Fragment,
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, Finished, StepFinished
from reattach.runs.machine import RunMachine


class FrozenClock(SystemClock):
    def now(self) -> datetime:
        return datetime(2026, 11, 22, 13, 14, 24, 562_127, tzinfo=UTC)


def machine(*, stream_tokens: bool = True) -> RunMachine:
    return RunMachine(FrozenClock(), stream_tokens=stream_tokens)


def played(deltas: list[Delta], *, stream_tokens: bool = True) -> list[Event]:
    course = machine(stream_tokens=stream_tokens)
    events = [event for delta in deltas for event in course.on_delta(delta)]
    return events + course.finish()


def outputs(events: list[Event]) -> list[Output]:
    return [event for event in events if isinstance(event, Output)]


def parts_of(events: list[Event]) -> list[Fragment]:
    return [part for event in outputs(events) for part in event.parts]


def test_every_delta_is_an_event_when_tokens_are_streamed() -> None:
    events = played([TextPart("a"), TextPart("b")])

    assert parts_of(events) == [TextPart("a"), TextPart("b")]


def test_every_part_is_one_event_when_tokens_are_not_streamed() -> None:
    events = played(
        [ReasoningPart("r0 "), ReasoningPart("r1", "sig"), TextPart("a"), TextPart("b")],
        stream_tokens=False,
    )

    assert parts_of(events) == [ReasoningPart("r0 r1", "sig"), TextPart("ab")]


def test_parts_of_a_step_share_a_message_and_are_numbered() -> None:
    events = played([ReasoningPart("r"), TextPart("a"), ToolCallDelta("call-1", "search", "{}")])
    places = [event.place for event in outputs(events)]

    assert [place.index for place in places] == [0, 1, 2]
    assert len({place.message_id for place in places}) == 1
    assert len({place.step_id for place in places}) == 1


def test_what_follows_a_finished_step_belongs_to_a_new_one() -> None:
    events = played(
        [TextPart("a"), StepFinished(Usage(prompt_tokens=1)), TextPart("b"),
         StepFinished(Usage(prompt_tokens=2))]
    )  # fmt: skip
    texts = outputs(events)

    assert texts[0].place.step_id != texts[1].place.step_id
    assert texts[0].place.message_id != texts[1].place.message_id
    assert texts[1].place.index == 0


def test_a_tool_return_is_a_message_of_its_own_in_the_step_that_called() -> None:
    events = played(
        [ToolCallDelta("call-1", "search", "{}"), StepFinished(Usage()),
         ToolReturnPart("call-1", "search", "success", "42")]
    )  # fmt: skip
    call, returned = outputs(events)

    assert isinstance(call.parts[0], ToolCallDelta)
    assert returned.parts == (ToolReturnPart("call-1", "search", "success", "42"),)
    assert returned.place.step_id == call.place.step_id
    assert returned.place.message_id != call.place.message_id


def test_calls_of_one_step_are_whole_and_in_order_when_tokens_are_not_streamed() -> None:
    events = played(
        [
            ToolCallDelta("call-1", "search"),
            ToolCallDelta("call-1", None, '{"a":'),
            ToolCallDelta("call-2", "fetch", "{}"),
            ToolCallDelta("call-1", None, " 1}"),
        ],
        stream_tokens=False,
    )
    [request] = outputs(events)

    assert request.parts == (
        ToolCallPart("call-1", "search", '{"a": 1}'),
        ToolCallPart("call-2", "fetch", "{}"),
    )


def test_usage_is_the_sum_of_the_steps() -> None:
    events = played(
        [
            TextPart("a"),
            StepFinished(Usage(3, 10, 13, context_tokens=13)),
            TextPart("b"),
            StepFinished(Usage(4, 20, 24, cached_input_tokens=5, context_tokens=24)),
        ]
    )

    assert events[-1] == Usage(7, 30, 37, 2, cached_input_tokens=5, context_tokens=24)


@pytest.mark.promise("P3")
def test_a_failed_run_ends_with_stop_error_and_usage_in_this_order() -> None:
    course = machine()
    course.on_delta(TextPart("a"))
    events = course.fail(ModelRateLimitError("Too many requests; try again later."))

    assert events[:2] == [
        Stopped(StopReason.MODEL_API_ERROR),
        Failed("llm_rate_limit", "Too many requests; try again later.", None),
    ]
    assert isinstance(events[2], Usage)
    assert len(events) == 3


@pytest.mark.promise("P3")
def test_nothing_follows_the_terminal_group() -> None:
    course = machine()
    course.stop(StopReason.CANCELLED)

    assert course.on_delta(TextPart("late")) == []
    assert course.finish() == []
    assert course.stop(StopReason.ERROR) == []
    assert course.fail(ModelRateLimitError("late")) == []


def test_a_part_under_way_is_kept_when_the_run_is_stopped() -> None:
    course = machine(stream_tokens=False)
    course.on_delta(TextPart("half an "))
    course.on_delta(TextPart("answer"))
    events = course.stop(StopReason.CANCELLED)

    assert parts_of(events) == [TextPart("half an answer")]


def test_the_reason_that_an_engine_gives_ends_the_run() -> None:
    events = played([TextPart("a"), Finished(StopReason.MAX_TOKENS)])

    assert Stopped(StopReason.MAX_TOKENS) in events


_DELTAS = st.one_of(
    st.builds(TextPart, st.text(min_size=1, max_size=5)),
    st.builds(ReasoningPart, st.text(min_size=1, max_size=5)),
    st.builds(ToolCallDelta, st.sampled_from(["c1", "c2"]), st.just("f"), st.just("{}")),
    st.builds(ToolReturnPart, st.just("c1"), st.just("f"), st.just("success"), st.text(max_size=5)),
    st.builds(StepFinished, st.just(Usage(1, 1, 2))),
)


@given(st.lists(_DELTAS, max_size=30))
def test_streaming_tokens_changes_how_the_text_is_cut_and_nothing_else(deltas: list[Delta]) -> None:
    def text(events: list[Event]) -> str:
        return "".join(part.text for part in parts_of(events) if isinstance(part, TextPart))

    fine, coarse = played(deltas), played(deltas, stream_tokens=False)

    assert text(fine) == text(coarse)
    assert fine[-1] == coarse[-1]
    for events in (fine, coarse):
        assert sum(isinstance(event, Stopped) for event in events) == 1
        assert isinstance(events[-2], Stopped)


@pytest.mark.parametrize("reason", [None, StopReason.END_TURN, StopReason.MAX_TOKENS])
def test_a_turn_that_leaves_a_call_without_its_approval_requires_it(
    reason: StopReason | None,
) -> None:
    call = ToolCallDelta("call-1", name="look", arguments="{}", needs_approval=True)
    end: list[Delta] = [] if reason is None else [Finished(reason)]

    waits = played([call, *end])
    ran = played([call, ToolReturnPart("call-1", "look", "success", "42"), *end])

    expected = StopReason.MAX_TOKENS if reason is StopReason.MAX_TOKENS else None
    assert Stopped(expected or StopReason.REQUIRES_APPROVAL) in waits
    assert Stopped(expected or StopReason.END_TURN) in ran
