"""Pieces of texts, which dialects frame around their JSON, beside the events that they are."""

from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.events import Event, Output, Place, Stopped, StopReason, Usage
from reattach.domain.ids import MessageId, Seq, StepId
from reattach.domain.messages import Fragment, ReasoningPart, TextPart, ToolCallDelta
from reattach.log.base import Slice
from reattach.runs.translation.frames import Translator
from reattach.testing.conformance.dialect_samples import FACTS
from reattach.wire.dialects.ag_ui import AgUi
from reattach.wire.dialects.chat_completions import ChatCompletions
from reattach.wire.dialects.dialect import Dialect
from reattach.wire.dialects.openai_responses import Responses
from reattach.wire.dialects.ui_messages import UiMessages
from reattach.wire.letta import Encoder

DIALECTS: Final[list[Dialect]] = [
    Responses(),
    ChatCompletions(),
    ChatCompletions(includes_usage=True),
    UiMessages(),
    AgUi(),
]
AT: Final = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_PARTS = st.one_of(
    st.builds(TextPart, _TEXTS),
    st.builds(ReasoningPart, _TEXTS, st.none() | _TEXTS),
    st.builds(
        ToolCallDelta,
        st.sampled_from(["call-1", "call-2"]),
        st.none() | st.sampled_from(["look", "open_map"]),
        st.none() | _TEXTS,
        st.booleans(),
    ),
)
_PLACES = st.builds(
    lambda number, index: Place(
        MessageId(f"message-00000000-0000-4000-8000-{number:012d}"),
        StepId(f"step-00000000-0000-4000-8000-{number:012d}"),
        index,
        AT,
    ),
    st.integers(1, 2),
    st.integers(0, 1),
)
_OUTPUT = st.tuples(_PLACES, st.lists(_PARTS, min_size=1, max_size=6))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@given(outputs=st.lists(_OUTPUT, max_size=5), cut=st.integers(0, 30))
def test_the_pieces_of_a_log_have_the_frames_of_their_events(
    dialect: Dialect, outputs: list[tuple[Place, list[Fragment]]], cut: int
) -> None:
    events: list[Event] = [Output(place, (part,)) for place, parts in outputs for part in parts]
    events += [Stopped(StopReason.END_TURN), Usage()]
    fold, translator = dialect.fold(FACTS), Translator(dialect, FACTS)
    expected = [*fold.begin(), *(frame for event in events for frame in fold.add(event))]
    logged = Encoder(FACTS.run_id).frames(events, after_seq=Seq(0))
    cut = min(cut, len(events))
    found: list[bytes] = translator.begin()
    for first, part in ((1, logged[:cut]), (cut + 1, logged[cut:])):
        piece = Slice(Seq(first), Seq(first + len(part) - 1), b"".join(part))
        found += translator.translate(piece)
    assert found == expected
    assert translator.fold.size_bytes == fold.size_bytes
