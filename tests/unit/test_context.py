from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.domain.context import (
    choose_cut,
    cuts,
    in_context,
    message_tokens,
    summary_as_user_message,
    text_tokens,
    transcript,
)
from reattach.domain.ids import MessageId, new_message_id
from reattach.domain.messages import (
    ContentPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

AT = datetime(2026, 11, 22, tzinfo=UTC)


def message(role: Role, *parts: ContentPart) -> Message:
    return Message(id=new_message_id(), role=role, parts=parts, created_at=AT)


def user(text: str = "hello") -> Message:
    return message(Role.USER, TextPart(text))


def said(text: str = "hello") -> Message:
    return message(Role.ASSISTANT, TextPart(text))


def calls(*call_ids: str, waits: bool = False) -> Message:
    parts = [ToolCallPart(call_id, "look", "{}", waits) for call_id in call_ids]
    return message(Role.ASSISTANT, *parts)


def returns(*call_ids: str) -> Message:
    return message(Role.TOOL, *(ToolReturnPart(one, "look", "success", "42") for one in call_ids))


def summary(kept_from: MessageId | None = None, text: str = "so far") -> Message:
    return message(Role.SUMMARY, SummaryPart(text, kept_from))


def test_all_is_in_context_where_there_is_no_summary() -> None:
    messages = [message(Role.SYSTEM), user(), said()]
    assert in_context(messages) == messages


def test_the_newest_summary_comes_before_what_it_left_and_what_followed() -> None:
    system, one, two, three, four = message(Role.SYSTEM), user(), said(), user(), said()
    first, second = summary(two.id), summary(three.id)
    messages = [system, one, two, first, three, second, four]
    assert in_context(messages) == [system, second, three, four]
    assert in_context(messages[:5]) == [system, first, two, three]
    assert in_context([system, one, two, first, three, summary(two.id)])[2:] == [two, three]


@pytest.mark.parametrize(
    "kept_from", [None, MessageId("message-of-another-thread")], ids=["nothing", "unknown"]
)
def test_a_summary_that_left_nothing_is_followed_by_what_came_after_it(
    kept_from: MessageId | None,
) -> None:
    system, one, last = message(Role.SYSTEM), user(), summary(kept_from)
    after = user()
    assert in_context([system, one, last, after]) == [system, last, after]


def test_a_summary_is_sent_to_the_model_as_text_of_the_user() -> None:
    sent = summary_as_user_message(summary(text="They like tea."))
    assert sent.role is Role.USER
    assert sent.text.endswith("They like tea.")
    assert summary_as_user_message(one := user()) is one


def test_messages_are_cut_before_what_the_user_or_the_model_says() -> None:
    assert cuts([user(), said(), user(), said()]) == [1, 2, 3]
    assert cuts([user()]) == []
    assert cuts([summary(), user(), said()]) == [2]


def test_no_call_is_parted_from_its_return() -> None:
    messages = [user(), calls("a", "b"), returns("a"), returns("b"), said(), user()]
    assert cuts(messages) == [1, 4, 5]


def test_calls_that_wait_stay_with_all_that_follows() -> None:
    messages = [user(), said(), user(), calls("a", waits=True), user()]
    assert cuts(messages) == [1, 2, 3]
    assert cuts([user(), calls("a", waits=True), returns("a"), said(), user()]) == [1, 3, 4]


def test_an_id_that_a_provider_uses_again_is_another_call() -> None:
    messages = [user(), calls("a"), returns("a"), calls("a"), returns("a"), user()]
    assert cuts(messages) == [1, 3, 5]


_SHAPES = st.lists(st.sampled_from(["user", "said", "call", "return", "summary"]), max_size=30)


@pytest.mark.promise("P18")
@given(_SHAPES, st.integers(0, 300))
def test_whatever_is_left_out_every_call_that_is_left_has_its_return(
    shapes: list[str], keep_tokens: int
) -> None:
    messages: list[Message] = []
    waiting: list[str] = []
    for number, shape in enumerate(shapes):
        match shape:
            case "call":
                waiting.append(str(number))
                messages.append(calls(str(number)))
            case "return" if waiting:
                messages.append(returns(waiting.pop(0)))
            case "summary":
                messages.append(summary())
            case "said":
                messages.append(said())
            case _:
                messages.append(user())
    cut = choose_cut(messages, keep_tokens)
    if cut is None:
        return
    assert 0 < cut < len(messages)

    def ids(among: list[Message], kind: type[ToolCallPart] | type[ToolReturnPart]) -> set[str]:
        return {p.tool_call_id for m in among for p in m.parts if isinstance(p, kind)}

    assert ids(messages[cut:], ToolReturnPart) <= ids(messages[cut:], ToolCallPart)
    assert messages[cut].role in {Role.USER, Role.ASSISTANT}
    tail = sum(map(message_tokens, messages[cut:]))
    assert tail <= keep_tokens or cut == cuts(messages)[-1]
    earlier = [place for place in cuts(messages) if place < cut]
    for place in earlier:
        assert sum(map(message_tokens, messages[place:])) > keep_tokens


def test_tokens_are_a_quarter_of_the_bytes_and_images_have_a_fixed_count() -> None:
    assert [text_tokens(text) for text in ("", "abc", "abcd", "abcde", "日本語")] == [0, 1, 1, 2, 3]
    assert message_tokens(user("abcd")) == 5
    assert message_tokens(message(Role.USER, ImagePart(None, "image/png", "x" * 9999))) == 1004
    assert message_tokens(message(Role.ASSISTANT, ReasoningPart("long " * 99))) == 4
    assert (message_tokens(calls("a")), message_tokens(returns("a"))) == (10, 9)


def test_what_a_summary_is_made_of_is_bounded_and_keeps_the_summary_before_it() -> None:
    messages = [summary(text="earlier things"), *(user(f"message {n}") for n in range(100))]
    text = transcript(messages, 200, part_chars=50)
    assert text.startswith("earlier summary: earlier things")
    assert "message 99" in text
    assert "message 0\n" not in text
    assert "Older messages are left out here" in text
    assert len(text) < 300
    assert "1 more characters" in transcript([user("abcd")], 200, part_chars=3)


def test_a_transcript_describes_calls_and_returns_in_words() -> None:
    text = transcript([calls("a"), returns("a")], 1000, part_chars=100)
    assert text == "assistant calls look: {}\n\nlook returned (success): 42\n"
