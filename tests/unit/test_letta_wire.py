"""The Letta dialect: frames that clients know, and the way back from them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from reattach.domain.ids import MessageId, Seq, StepId, part_otid
from reattach.domain.messages import (
    CompactionStats,
    Fragment,
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.wire import letta, sse, stored
from reattach.wire.decoder import Decoder

AT = datetime(2026, 11, 22, 13, 14, 24, tzinfo=UTC)
RUN = "run-0c653f22-2e84-49aa-94c4-121b2c40da52"
MESSAGE = MessageId("message-31787f76-f5ed-4a7a-b183-9bf6aa00e163")
STEP = StepId("step-0fcaa142-0577-4291-ada1-202526a740af")


def place(index: int) -> Place:
    return Place(MESSAGE, STEP, index, AT)


def output(*parts: Fragment) -> Output:
    return Output(place(0), parts)


def test_a_chunk_of_text_is_the_recorded_frame() -> None:
    frame = letta.encode(Output(place(1), (TextPart("t0 "),)), Seq(4), RUN)

    assert frame == (
        b'data: {"id":"message-31787f76-f5ed-4a7a-b183-9bf6aa00e163",'
        b'"date":"2026-11-22T13:14:24+00:00","name":null,"message_type":"assistant_message",'
        b'"otid":"31787f76-f5ed-4a7a-b183-9bf6aa00e101","sender_id":null,'
        b'"step_id":"step-0fcaa142-0577-4291-ada1-202526a740af","is_err":null,"seq_id":4,'
        b'"run_id":"run-0c653f22-2e84-49aa-94c4-121b2c40da52","content":"t0 "}\n\n'
    )


@pytest.mark.promise("P1")
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.text(), st.booleans(), st.integers(1, 2**53)), max_size=20
    )
)
def test_an_encoder_makes_the_frames_that_its_events_make_alone(
    said: list[tuple[int, str, bool, int]],
) -> None:
    encoder = letta.Encoder(RUN)
    places = [place(index) for index in range(4)]
    for index, text, reasons, seq in said:
        event = Output(places[index], ((ReasoningPart if reasons else TextPart)(text),))
        assert encoder.encode(event, Seq(seq)) == letta.encode(event, Seq(seq), RUN)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "event",
    [
        Ping("ping-1", AT),
        output(TextPart("a")),
        output(ReasoningPart("r")),
        output(HiddenReasoningPart("omitted")),
        output(ToolCallDelta("c", "f")),
        output(ToolCallPart("c", "f", "{}")),
        output(ToolReturnPart("c", "f", "success", "42")),
        CompactionBegan("0", STEP, AT, "context_window_limit", 9, 8),
        output(SummaryPart("s", None, CompactionStats("requested", 8, 9, 2))),
        Stopped(StopReason.END_TURN),
        Failed("llm_error", "no", None),
        Usage(1, 2, 3, 1),
    ],
    ids=lambda event: type(event.parts[0] if isinstance(event, Output) else event).__name__,
)
def test_every_event_carries_its_seq_and_its_run(event: Event) -> None:
    body = letta.body(event, Seq(7), RUN)

    assert (body["seq_id"], body["run_id"]) == (7, RUN)


def test_an_error_is_a_named_event() -> None:
    frame = letta.encode(Failed("llm_error", "no", None), Seq(3), RUN)

    assert frame.startswith(b"event: error\ndata: {")


@pytest.mark.parametrize(
    ("needs_approval", "first", "later"),
    [
        (False, {"name": "f", "tool_call_id": "c"}, {"arguments": "{", "tool_call_id": "c"}),
        (
            True,
            {"name": "f", "arguments": None, "tool_call_id": "c"},
            {"name": None, "arguments": "{", "tool_call_id": "c"},
        ),
    ],
    ids=["call", "approval request"],
)
def test_chunks_of_a_call_have_the_recorded_members(
    needs_approval: bool, first: dict[str, str], later: dict[str, str]
) -> None:
    def chunk(name: str | None, arguments: str | None) -> letta.Json:
        return letta.body(output(ToolCallDelta("c", name, arguments, needs_approval)), Seq(1), RUN)

    body = chunk("f", None)
    assert body["tool_call"] == body["tool_calls"] == first
    assert chunk(None, "{")["tool_call"] == later


def test_whole_calls_are_a_list() -> None:
    calls = (ToolCallPart("c1", "f", "{}"), ToolCallPart("c2", "g", "{}"))
    body = letta.body(output(*calls), Seq(1), RUN)

    assert [call["tool_call_id"] for call in body["tool_calls"]] == ["c1", "c2"]
    assert body["tool_call"] == body["tool_calls"][0]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
_PLACES = st.builds(place, st.integers(0, 127))
_PARTS: st.SearchStrategy[tuple[Fragment, ...]] = st.one_of(
    st.tuples(st.builds(TextPart, _TEXT)),
    st.tuples(st.builds(ReasoningPart, _TEXT, st.none() | _TEXT)),
    st.tuples(st.builds(HiddenReasoningPart, st.sampled_from(["redacted", "omitted"]), _TEXT)),
    st.tuples(st.builds(ToolCallDelta, _TEXT, st.none() | _TEXT, st.none() | _TEXT)),
    st.lists(st.builds(ToolCallPart, _TEXT, _TEXT, _TEXT), min_size=1, max_size=3).map(tuple),
    st.tuples(st.builds(
        ToolReturnPart, _TEXT, _TEXT, st.sampled_from(["success", "error"]), _TEXT,
        st.none() | st.tuples(_TEXT), st.none() | st.tuples(_TEXT),
    )),
    st.tuples(st.builds(
        SummaryPart, _TEXT, st.none() | st.just(MESSAGE),
        st.builds(CompactionStats, _TEXT, st.integers(0), st.integers(0), st.integers(0)),
    )),
)  # fmt: skip
_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Ping, _TEXT, st.just(AT)),
    st.builds(Output, _PLACES, _PARTS),
    st.builds(
        CompactionBegan, _TEXT, st.just(STEP), st.just(AT), _TEXT, st.integers(0), st.integers(0)
    ),
    st.builds(Stopped, st.sampled_from(StopReason)),
    st.builds(Failed, _TEXT, _TEXT, st.none() | _TEXT),
    st.builds(Usage, st.integers(0), st.integers(0), st.integers(0), st.integers(0)),
)  # fmt: skip


@given(st.lists(_EVENTS, min_size=1, max_size=5))
def test_joined_frames_read_back_as_the_events_whatever_their_text(events: list[Event]) -> None:
    joined = b"".join(letta.encode(event, Seq(seq), RUN) for seq, event in enumerate(events, 1))

    assert [letta.decode(frame) for frame in sse.split_frames(joined)] == events
    assert list(Decoder(RUN).events(sse.split_frames(joined))) == events


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            _TEXT,
            st.sampled_from([TextPart, ReasoningPart, ToolCallDelta]),
            st.none() | _TEXT,
            st.integers(1, 2**53),
        )
    )
)
def test_pieces_are_encoded_and_decoded_as_each_is_alone(
    said: list[tuple[int, str, type[Fragment], str | None, int]],
) -> None:
    def part_of(kind: type[Fragment], text: str, more: str | None) -> Fragment:
        if kind is TextPart:
            return TextPart(text)
        if kind is ReasoningPart:
            return ReasoningPart(text, more)
        return ToolCallDelta("call-1", more, text, needs_approval=len(text) % 2 == 0)

    parts = [(index, part_of(kind, text, more)) for index, text, kind, more, _ in said]
    events = [Output(place(index), (part,)) for index, part in parts]
    frames = [
        letta.encode(event, Seq(one[-1]), RUN) for event, one in zip(events, said, strict=True)
    ]
    assert list(Decoder(RUN).events(frames)) == [letta.decode(frame) for frame in frames]
    places = [place(index) for index in range(2)]  # Pieces of one part have one and the same.
    events = [Output(places[index], (part,)) for index, part in parts]
    encoded = letta.Encoder(RUN).frames(events, after_seq=Seq(0))
    assert encoded == [letta.encode(event, Seq(seq), RUN) for seq, event in enumerate(events, 1)]


@given(st.lists(_EVENTS, max_size=4), st.integers(0, 400))
def test_joined_frames_are_split_up_to_the_last_whole_one(events: list[Event], cut: int) -> None:
    frames = [letta.encode(event, Seq(seq), RUN) for seq, event in enumerate(events, 1)]
    joined = b"".join(frames)

    assert sse.split_frames(joined) == frames
    for torn in (joined[:-1], joined[:-2], joined[:cut]):
        assert sse.split_frames(torn) == [part + b"\n\n" for part in torn.split(b"\n\n")[:-1]]


@given(_EVENTS)
def test_a_frame_has_no_line_break_but_at_its_end(event: Event) -> None:
    frame = letta.encode(event, Seq(1), RUN)

    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == (3 if isinstance(event, Failed) else 2)
    assert b"\r" not in frame


def test_the_otid_of_a_part_is_the_message_with_its_index() -> None:
    assert part_otid("message-31787f76-f5ed-4a7a-b183-9bf6aa00e163", 1).endswith("e101")
    assert part_otid("message-fd0b32d6-52db-4c1e-b320-1f02a854edb0", 2).endswith("ed82")


def test_a_stored_answer_is_its_parts_in_order() -> None:
    message = Message(
        id=MESSAGE,
        role=Role.ASSISTANT,
        parts=(ReasoningPart("r"), TextPart("a"), ToolCallPart("c", "f", "{}")),
        created_at=AT,
        step_id=STEP,
    )
    items = stored.message_items(message)

    assert [item["message_type"] for item in items] == [
        "reasoning_message",
        "assistant_message",
        "tool_call_message",
    ]
    assert [item["otid"][-2:] for item in items] == ["00", "01", "02"]
    assert {item["seq_id"] for item in items} == {None}


def test_text_alone_is_a_string_and_images_are_parts() -> None:
    def content(*parts: TextPart | ImagePart) -> object:
        message = Message(id=MESSAGE, role=Role.USER, parts=parts, created_at=AT)
        return stored.message_items(message)[0]["content"]

    assert content(TextPart("hi")) == "hi"
    assert content(TextPart("hi"), ImagePart(url="https://example.org/a.png")) == [
        {"type": "text", "text": "hi"},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    ]
