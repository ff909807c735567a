"""The way in for deltas: numbers, texts and ids that can be stored and read back."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from reattach.domain.events import StopReason, Usage
from reattach.domain.limits import MAX_INTEGER, MAX_TOOL_CALL_ID_CHARS
from reattach.domain.messages import (
    ImagePart,
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.domain.text import storable_text
from reattach.engine.base import Delta, Finished, StepFinished, ToolStarting
from reattach.engine.intake import Intake, whole_count
from reattach.tools.base import Tool
from reattach.tools.calling import call_tool
from tests.unit.test_machine import parts_of, played

HIGH, LOW, SMILE = "\ud83d", "\ude00", "\U0001f600"


def taken(*deltas: Delta) -> list[Delta]:
    intake = Intake()
    return [one for delta in deltas for one in intake.take(delta)] + list(intake.release())


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        (7, 7),
        (12.5, 12),
        (12.6, 13),
        (Decimal("3.2"), 3),
        (MAX_INTEGER, MAX_INTEGER),
        (MAX_INTEGER + 1, None),
        (1e300, None),
        (-1, None),
        (-0.2, 0),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("12", None),
        (None, None),
        ([], None),
    ],
)
def test_a_count_is_rounded_to_a_whole_number_and_anything_else_is_unknown(
    value: object, count: int | None
) -> None:
    """A1"""
    assert whole_count(value) == count


def test_a_run_whose_steps_count_fractions_has_a_usage_of_whole_numbers() -> None:
    """A1: every member, the details too, and the sum of the steps."""
    odd: Any = Usage(12.5, float("nan"), "many", 1, 1.5, float("inf"), True, 2**70)  # type: ignore[arg-type]
    huge = Usage(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER, 1)

    events = played([StepFinished(odd), StepFinished(huge), StepFinished(huge)])

    assert events[-1] == Usage(
        completion_tokens=MAX_INTEGER,
        prompt_tokens=MAX_INTEGER,
        total_tokens=MAX_INTEGER,
        step_count=3,
        cached_input_tokens=2,
    )


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (SMILE, SMILE),
        (HIGH + LOW, SMILE),
        (HIGH, "\ufffd"),
        (LOW, "\ufffd"),
        (LOW + HIGH, "\ufffd\ufffd"),
        (f"a{HIGH}b{HIGH}{LOW}", f"a\ufffdb{SMILE}"),
        ("a\0b", "a\ufffdb"),
        (f"{HIGH}\0{LOW}", "\ufffd\ufffd\ufffd"),
    ],
)
def test_halves_are_joined_and_what_cannot_be_stored_is_replaced(text: str, stored: str) -> None:
    """A2"""
    assert storable_text(text) == stored
    assert "".join(one.text for one in taken(TextPart(text)) if isinstance(one, TextPart)) == (
        stored
    )


@pytest.mark.parametrize(
    ("deltas", "stored"),
    [
        (
            [TextPart(f"a{HIGH}"), TextPart(f"{LOW}b")],
            [TextPart("a"), TextPart(f"{SMILE}b")],
        ),
        (
            [TextPart(HIGH), TextPart(""), TextPart(LOW)],
            [TextPart(""), TextPart(SMILE)],
        ),
        (
            [TextPart(HIGH), ReasoningPart(LOW)],
            [TextPart("\ufffd"), ReasoningPart("\ufffd")],
        ),
        (
            [ReasoningPart(f"r{HIGH}", f"s{HIGH}"), ReasoningPart(LOW, LOW)],
            [ReasoningPart("r", "s"), ReasoningPart(SMILE, SMILE)],
        ),
        (
            [ReasoningPart("r", f"s{HIGH}")],
            [ReasoningPart("r", "s"), ReasoningPart("", "\ufffd")],
        ),
        (
            [
                ToolCallDelta("a", name=f"n{HIGH}", arguments=HIGH),
                ToolCallDelta("b", arguments=HIGH),
                ToolCallDelta("a", name=LOW, arguments=LOW),
            ],
            [
                ToolCallDelta("a", name="n", arguments=""),
                ToolCallDelta("b", arguments=""),
                ToolCallDelta("a", name=SMILE, arguments=SMILE),
                ToolCallDelta("b", arguments="\ufffd"),
            ],
        ),
        (
            [TextPart(HIGH), StepFinished(Usage()), TextPart(LOW)],
            [TextPart("\ufffd"), StepFinished(Usage()), TextPart("\ufffd")],
        ),
    ],
)
def test_halves_are_joined_across_the_deltas_of_one_part_and_no_further(
    deltas: list[Delta], stored: list[Delta]
) -> None:
    """A2"""
    assert taken(*deltas) == stored
    assert taken(*stored) == stored


@pytest.mark.parametrize("stream_tokens", [True, False])
def test_a_half_that_no_other_follows_is_replaced_when_the_run_ends(*, stream_tokens: bool) -> None:
    """A2"""
    events = played([TextPart(f"a{HIGH}")], stream_tokens=stream_tokens)

    texts = [part.text for part in parts_of(events) if isinstance(part, TextPart)]
    assert "".join(texts) == "a\ufffd"


def test_a_return_with_images_is_a_fault_because_no_event_can_carry_them() -> None:
    """A1: the messages of a live run and of its recovery would differ."""
    image = ImagePart(url="https://example.org/a.png")

    with pytest.raises(ValueError, match="has no images"):
        taken(ToolReturnPart("c", "look", "success", "1", images=(image,)))


def test_a_call_its_start_and_its_return_keep_one_id_whatever_that_was() -> None:
    """A7: ids with U+0000 or halves, empty ones and very long ones."""
    for given in (f"call{HIGH}", "call\0", "", "c" * (MAX_TOOL_CALL_ID_CHARS + 1), "c" * 4500):
        call, start, returned = taken(
            ToolCallDelta(given, name="look"),
            ToolStarting(given),
            ToolReturnPart(given, "look", "success", "1"),
        )
        assert isinstance(call, ToolCallDelta)
        assert isinstance(start, ToolStarting)
        assert isinstance(returned, ToolReturnPart)
        assert call.tool_call_id == start.tool_call_id == returned.tool_call_id
        assert 1 <= len(call.tool_call_id) <= MAX_TOOL_CALL_ID_CHARS
        assert call.tool_call_id == storable_text(call.tool_call_id)


def test_ids_that_differ_in_what_cannot_be_stored_stay_different() -> None:
    """A7"""
    given = ["call\0", f"call{HIGH}", "call\ufffd", "call"]
    calls = taken(*(ToolCallDelta(one, name="look") for one in given))

    ids = [call.tool_call_id for call in calls if isinstance(call, ToolCallDelta)]
    assert len(set(ids)) == 4
    assert ids[-1] == "call"


def test_calls_without_an_id_in_two_steps_are_two_calls() -> None:
    """A7"""
    first, _, second = taken(
        ToolCallDelta("", name="look"), StepFinished(Usage()), ToolCallDelta("", name="look")
    )

    assert isinstance(first, ToolCallDelta)
    assert isinstance(second, ToolCallDelta)
    assert first.tool_call_id != second.tool_call_id


class Word(str):
    __slots__ = ()


def test_a_subclass_of_str_is_stored_as_plain_text() -> None:
    """A2: encoders refuse subclasses."""
    (delta,) = taken(TextPart(Word("plain")))
    assert isinstance(delta, TextPart)
    assert type(delta.text) is str


@pytest.mark.parametrize(
    "delta",
    [
        TextPart(None),  # type: ignore[arg-type]
        ReasoningPart(5),  # type: ignore[arg-type]
        ToolCallDelta(5),  # type: ignore[arg-type]
        ToolCallDelta("a", arguments={"x": 1}),  # type: ignore[arg-type]
        ToolReturnPart("a", "b", "success", b"bytes"),  # type: ignore[arg-type]
        Finished("no reason"),  # type: ignore[arg-type]
        "text",
        None,
    ],
)
def test_a_delta_of_the_wrong_type_is_refused_before_anything_of_it_is_taken(delta: Any) -> None:
    intake = Intake()
    intake.take(TextPart(HIGH))

    with pytest.raises((TypeError, ValueError)):
        intake.take(delta)

    assert intake.take(TextPart(LOW)) == [TextPart(SMILE)]


def test_a_status_and_a_reason_are_those_that_can_be_read_back() -> None:
    returned, finished = taken(
        ToolReturnPart("a", "b", "odd", "", stdout=["o"]),  # type: ignore[arg-type]
        Finished("max_steps"),  # type: ignore[arg-type]
    )
    assert returned == ToolReturnPart("a", "b", "error", "", stdout=("o",))
    assert finished == Finished(StopReason.MAX_STEPS)


class SaysTool(Tool):
    name = "says"
    kind = "custom"
    description = None
    parameters: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, output: Any) -> None:
        self._output = output

    async def call(self, arguments: str) -> str:
        return self._output  # type: ignore[no-any-return]


async def test_the_return_of_a_tool_can_be_stored_before_the_model_receives_it() -> None:
    """A2: a function tool that returns half a surrogate pair."""
    call = ToolCallPart("call", "says", "{}")
    returned = await call_tool(SaysTool(f"a{HIGH}"), call, seconds=5)
    assert returned == ToolReturnPart("call", "says", "success", "a\ufffd")

    odd = await call_tool(SaysTool({"a": 1}), call, seconds=5)
    assert odd.status == "error"


def test_the_text_of_a_call_is_the_same_with_and_without_tokens() -> None:
    """A2: arguments cut within a character."""
    cut = [f'{{"q":"{HIGH}', f'{LOW}"}}']
    deltas: list[Delta] = [ToolCallDelta("a", name="n", arguments=one) for one in cut]
    for stream_tokens in (True, False):
        events = played(deltas, stream_tokens=stream_tokens)
        calls = [
            part for part in parts_of(events) if isinstance(part, ToolCallDelta | ToolCallPart)
        ]
        text = "".join(call.arguments or "" for call in calls)
        assert json.loads(text) == {"q": SMILE}


@pytest.mark.parametrize("broke_off", [True, False])
def test_the_step_of_an_answer_that_broke_off_keeps_its_mark(broke_off: bool) -> None:
    assert taken(StepFinished(Usage(), broke_off=broke_off)) == [
        StepFinished(Usage(), broke_off=broke_off)
    ]
