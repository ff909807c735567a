"""Sequences of messages that share their memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.context import (
    message_tokens,
    summary_as_user_message,
    summary_count,
    with_summaries_as_text,
)
from reattach.domain.context_messages import ContextMessages
from reattach.domain.ids import new_message_id
from reattach.domain.messages import (
    ContentPart,
    Message,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

AT = datetime(2026, 11, 30, tzinfo=UTC)


def of_role(role: Role, text: str) -> Message:
    parts: tuple[ContentPart, ...]
    match role:
        case Role.SUMMARY:
            parts = (SummaryPart(text),)
        case Role.TOOL:
            parts = (ToolReturnPart(text, "look", "success", "42"),)
        case Role.ASSISTANT:
            parts = (TextPart(text), ToolCallPart(text, "look", "{}"))
        case _:
            parts = (TextPart(text),)
    return Message(id=new_message_id(), role=role, parts=parts, created_at=AT)


texts = st.text("ab", min_size=1, max_size=3)
messages = st.lists(
    st.builds(of_role, st.sampled_from([Role.USER, Role.ASSISTANT, Role.TOOL]), texts), max_size=6
)
begins = st.lists(st.builds(of_role, st.just(Role.SUMMARY), texts), max_size=1)
steps = st.lists(
    st.tuples(st.sampled_from(["grow", "follow", "as text"]), st.integers(0), messages)
)


def check(found: ContextMessages, expected: list[Message]) -> None:
    """Compare everything that can be asked of the sequence with a list."""
    assert list(found) == expected == found
    assert len(found) == len(expected)
    assert list(reversed(found)) == expected[::-1]
    for start in range(len(expected) + 1):
        assert found[start:] == expected[start:]
        assert found.total(message_tokens, start) == sum(map(message_tokens, expected[start:]))
    assert found[::-2] == expected[::-2]
    assert found[-2:] == expected[-2:]
    calls = {
        part.tool_call_id
        for message in expected
        for part in message.parts
        if isinstance(part, ToolCallPart | ToolReturnPart)
    }
    for call_id in ("a", "b", "ab", "ba", "aab"):
        assert found.has_call(call_id) == (call_id in calls)


@given(begins, messages, steps)
def test_every_sequence_that_grew_from_another_equals_a_list(
    begin: list[Message],
    first: list[Message],
    changes: list[tuple[str, int, list[Message]]],
) -> None:
    """Sequences grow from any earlier one, and none of them sees what another one got."""
    made = [(ContextMessages([*begin, *first]), [*begin, *first])]
    for change, chosen, added in changes:
        found, expected = made[chosen % len(made)]
        match change:
            case "grow":
                made.append((found.grown_by(added), [*expected, *added]))
            case "follow":
                made.append((found.followed_by(added), [*expected, *added]))
            case _:
                made.append(
                    (
                        found.with_summary_as(summary_as_user_message),
                        [summary_as_user_message(one) for one in expected],
                    )
                )
    for found, expected in made:
        check(found, expected)


@given(st.lists(st.builds(of_role, st.sampled_from(list(Role)), texts), max_size=6))
def test_a_model_gets_every_summary_as_a_message_of_the_user(given_messages: list[Message]) -> None:
    for form in (given_messages, ContextMessages(given_messages)):
        shown = with_summaries_as_text(form)
        assert shown == [summary_as_user_message(one) for one in given_messages]
        assert ContextMessages.of(shown).total(summary_count) == 0


def test_growing_measures_only_the_added_messages() -> None:
    measured: list[str] = []

    def measure(message: Message) -> int:
        measured.append(message.text)
        return 1

    context = ContextMessages([of_role(Role.USER, str(number)) for number in range(5)])
    assert context.total(measure) == 5
    measured.clear()
    grown = context.grown_by([of_role(Role.USER, "new")])
    assert grown.followed_by([of_role(Role.USER, "own")]).total(measure) == 7
    assert measured == ["new", "own"]
    assert grown[0] is context[0]


def test_an_index_beyond_the_messages_is_refused() -> None:
    context = ContextMessages([of_role(Role.USER, "only")])
    for index in (1, -2):
        with pytest.raises(IndexError):
            context[index]
