"""Runs of every kind, as events, for tests of dialects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from reattach.domain.events import (
    CompactionBegan,
    Event,
    Failed,
    Output,
    Ping,
    Place,
    Stopped,
    StopReason,
    Usage,
)
from reattach.domain.ids import AgentId, MessageId, RunId, StepId
from reattach.domain.messages import (
    Fragment,
    HiddenReasoningPart,
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.wire.dialects.dialect import RunFacts

AT: Final = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
FACTS: Final = RunFacts(
    run_id=RunId("run-0f0e0d0c-0b0a-4908-8706-050403020100"),
    created_at=AT,
    agent_id=AgentId("agent-00010203-0405-4607-8809-0a0b0c0d0e0f"),
    conversation_id="conv-10111213-1415-4617-9819-1a1b1c1d1e1f",
    model="scripted/echo",
    background=True,
    client_tools=frozenset({"open_map"}),
)
USAGE: Final = Usage(
    completion_tokens=7,
    prompt_tokens=11,
    total_tokens=18,
    step_count=1,
    cached_input_tokens=3,
    reasoning_tokens=2,
)


@dataclass(frozen=True, slots=True)
class SampleRun:
    """A whole run, with its terminal group as the last events."""

    name: str
    events: tuple[Event, ...]
    facts: RunFacts = FACTS


def _message(number: int) -> MessageId:
    return MessageId(f"message-00000000-0000-4000-8000-{number:012d}")


def _output(number: int, *parts: Fragment, index: int = 0, step: int = 1) -> Output:
    place = Place(_message(number), StepId(f"step-00000000-0000-4000-8000-{step:012d}"), index, AT)
    return Output(place, parts)


def _texts(number: int, *texts: str, index: int = 0, step: int = 1) -> Iterator[Output]:
    for text in texts:
        yield _output(number, TextPart(text), index=index, step=step)


def _thoughts(number: int, *texts: str, step: int = 1) -> Iterator[Output]:
    for text in texts:
        yield _output(number, ReasoningPart(text), step=step)


def _call(
    number: int,
    call_id: str,
    name: str,
    *pieces: str,
    index: int = 0,
    step: int = 1,
    waits: bool = False,
) -> Iterator[Output]:
    """A call in pieces: its name, then its arguments."""
    yield _output(number, ToolCallDelta(call_id, name, None, waits), index=index, step=step)
    for piece in pieces:
        delta = ToolCallDelta(call_id, None, piece, waits)
        yield _output(number, delta, index=index, step=step)


def _returned(
    number: int, call_id: str, name: str, output: str, *, fails: bool = False, step: int = 1
) -> Output:
    status = "error" if fails else "success"
    return _output(number, ToolReturnPart(call_id, name, status, output), step=step)  # type: ignore[arg-type]


def _ended(reason: StopReason = StopReason.END_TURN) -> Sequence[Event]:
    return [Stopped(reason), USAGE]


def _broken(reason: StopReason, error_type: str, message: str) -> Sequence[Event]:
    return [Stopped(reason), Failed(error_type, message, None), USAGE]


def _run(name: str, *pieces: Event | Iterator[Event] | Sequence[Event]) -> SampleRun:
    events: list[Event] = []
    for piece in pieces:
        if isinstance(piece, Iterator | list | tuple):
            events.extend(piece)
        else:
            events.append(piece)  # type: ignore[arg-type]
    return SampleRun(name, tuple(events))


SAMPLE_RUNS: Final = (
    _run("a text", _texts(1, "The ", "island ", "of “Ærø”.\n"), _ended()),
    _run("one whole text", _texts(1, "Done."), _ended()),
    _run("nothing", _ended()),
    _run("a ping first", Ping("ping-1", AT), _texts(1, "Hello"), _ended()),
    _run("thoughts and a text", _thoughts(1, "Let me ", "see."), _texts(2, "Yes", "."), _ended()),
    _run(
        "thoughts with a signature",
        _thoughts(1, "Hm"),
        _output(1, ReasoningPart("", "sig-1")),
        _texts(2, "Yes"),
        _ended(),
    ),
    _run(
        "hidden thoughts",
        _output(1, HiddenReasoningPart("redacted", "opaque")),
        _texts(2, "Yes"),
        _ended(),
    ),
    _run("two texts in a step", _texts(1, "One"), _texts(1, "Two", index=1), _ended()),
    _run(
        "a tool of the server",
        _texts(1, "I look."),
        _call(2, "call-1", "ferry_times", '{"from":', '"Svendborg"}'),
        _returned(3, "call-1", "ferry_times", "10:00, 12:00"),
        _texts(4, "At ten.", step=2),
        _ended(),
    ),
    _run(
        "a whole call",
        _output(1, ToolCallPart("call-1", "ferry_times", '{"from":"Ærøskøbing"}')),
        _returned(2, "call-1", "ferry_times", "11:00"),
        _texts(3, "At eleven.", step=2),
        _ended(),
    ),
    _run(
        "two calls at once",
        _output(
            1, ToolCallPart("call-1", "first", "{}"), ToolCallPart("call-2", "second", '{"a":1}')
        ),
        _returned(2, "call-2", "second", "two"),
        _returned(3, "call-1", "first", "one", fails=True),
        _texts(4, "Both.", step=2),
        _ended(),
    ),
    _run(
        "two calls in pieces",
        _call(1, "call-1", "first", "{", "}"),
        _call(1, "call-2", "second", "{}", index=1),
        _returned(2, "call-1", "first", "one"),
        _returned(3, "call-2", "second", "two"),
        _texts(4, "Both.", step=2),
        _ended(),
    ),
    _run(
        "arguments that are no JSON",
        _call(1, "call-1", "first", "{oops"),
        _returned(2, "call-1", "first", "The arguments are no JSON.", fails=True),
        _texts(3, "Sorry.", step=2),
        _ended(),
    ),
    _run(
        "an approval",
        _texts(1, "May I?"),
        _call(2, "call-1", "delete_all", '{"sure":true}', waits=True),
        _ended(StopReason.REQUIRES_APPROVAL),
    ),
    _run(
        "a tool of the client",
        _call(1, "call-1", "open_map", '{"at":', '"Marstal"}', waits=True),
        _ended(StopReason.REQUIRES_APPROVAL),
    ),
    _run(
        "a call of each kind",
        _call(1, "call-1", "ferry_times", "{}"),
        _returned(2, "call-1", "ferry_times", "10:00"),
        _output(
            3,
            ToolCallPart("call-2", "open_map", "{}", needs_approval=True),
            ToolCallPart("call-3", "delete_all", "{}", needs_approval=True),
            step=2,
        ),
        _ended(StopReason.REQUIRES_APPROVAL),
    ),
    _run("cut by the limit", _texts(1, "And so on and"), _ended(StopReason.MAX_TOKENS)),
    _run("too many steps", _texts(1, "Again"), _ended(StopReason.MAX_STEPS)),
    _run("cancelled", _texts(1, "The isl"), _ended(StopReason.CANCELLED)),
    _run("cancelled within a call", _call(1, "call-1", "f", '{"a'), _ended(StopReason.CANCELLED)),
    _run("cancelled before anything", _ended(StopReason.CANCELLED)),
    _run(
        "failed",
        _texts(1, "The isl"),
        _broken(StopReason.MODEL_API_ERROR, "llm_error", "The model answers no longer."),
    ),
    _run(
        "failed before anything",
        _broken(StopReason.ERROR, "internal_error", "An error occurred during agent execution."),
    ),
    _run(
        "compacted",
        CompactionBegan(
            "message-c", StepId("step-00000000-0000-4000-8000-000000000001"), AT, "auto", 900, 1000
        ),
        _output(1, SummaryPart("They spoke of islands.")),
        _texts(2, "Where were we?", step=2),
        _ended(),
    ),
)
