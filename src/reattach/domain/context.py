"""The context of a conversation: which messages a model gets, and their size. Pure.

A compaction removes nothing. It adds a summary message that names the first older message that
stays in context. The context is therefore derived from the messages alone, in every process and
after every restart, and a fork has the same context as its source.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Protocol

import msgspec

from reattach.domain.context_messages import ContextMessages
from reattach.domain.ids import MessageId
from reattach.domain.messages import (
    ImagePart,
    Message,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

BYTES_PER_TOKEN: Final = 4
"""Bytes of UTF-8 per token: typical for English, and an overestimate of tokens for most other
texts."""

MESSAGE_TOKENS: Final = 4
"""The tokens of a message beside its text."""

IMAGE_TOKENS: Final = 1000
"""The tokens that providers count for an image of about 1000 by 1000 pixels."""

_SUMMARY: Final = (
    "Earlier messages of this conversation were left out to save space. This is a summary of "
    "them:\n\n{}"
)


class DescribedTool(Protocol):
    """The description of a tool for a model."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str | None: ...

    @property
    def parameters(self) -> object: ...


def in_context(messages: Sequence[Message]) -> list[Message]:
    """Return the messages in context of a thread whose first message is the system message.

    The order is the model's: the system message, the newest summary, the messages that it kept, and
    the rest.
    """
    summaries = {one.id: summary_of(one) for one in messages if one.role is Role.SUMMARY}
    by_id = {one.id: one for one in messages}
    return [by_id[one] for one in ids_in_context(list(by_id), summaries)]


def ids_in_context(
    ids: Sequence[MessageId], summaries: Mapping[MessageId, SummaryPart]
) -> list[MessageId]:
    """Return the same as ids; ``summaries`` has the messages that are summaries."""
    newest = max((place for place, one in enumerate(ids) if one in summaries), default=None)
    if newest is None:
        return list(ids)
    kept_from = summaries[ids[newest]].kept_from
    places = (place for place in range(newest) if ids[place] == kept_from)
    first = max(next(places, newest), 1)  # The system message is in front anyway.
    left = [one for one in ids[first:newest] if one not in summaries]
    return [ids[0], ids[newest], *left, *ids[newest + 1 :]]


def model_messages(messages: Sequence[Message]) -> list[Message]:
    """Return the messages in context that the model gets, without the system prompt."""
    system, approval = Role.SYSTEM, Role.APPROVAL
    return [one for one in messages if one.role is not system and one.role is not approval]


def summary_of(message: Message) -> SummaryPart:
    part = message.parts[0]
    assert isinstance(part, SummaryPart), f"{message.id} is no summary"
    return part


def summary_as_user_message(message: Message) -> Message:
    """Return a summary in its form for models, a user's message; any other message unchanged."""
    if message.role is not Role.SUMMARY:
        return message
    text = _SUMMARY.format(summary_of(message).text)
    return msgspec.structs.replace(message, role=Role.USER, parts=(TextPart(text),))


def with_summaries_as_text(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with each summary in its form for models."""
    converted = ContextMessages.of(messages).with_summary_as(summary_as_user_message)
    if not converted.total(summary_count):
        return converted
    return [summary_as_user_message(one) for one in messages]


def summary_count(message: Message) -> int:
    """Return how many summaries the message is."""
    return 1 if message.role is Role.SUMMARY else 0


# Sizes.


def text_tokens(text: str) -> int:
    """Estimate the tokens of a text, rounded up."""
    size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)


def messages_tokens(messages: Iterable[Message]) -> int:
    """Return the sum of the messages' estimates."""
    return sum(map(message_tokens, messages))


def message_tokens(message: Message) -> int:
    """Estimate the tokens of a message, without reasoning, which models do not get again."""
    tokens = MESSAGE_TOKENS
    for part in message.parts:
        match part:
            case TextPart(text) | SummaryPart(text):
                tokens += text_tokens(text)
            case ImagePart():
                tokens += IMAGE_TOKENS
            case ToolCallPart(name=name, arguments=arguments):
                tokens += MESSAGE_TOKENS + text_tokens(name) + text_tokens(arguments)
            case ToolReturnPart(output=output, images=images):
                tokens += MESSAGE_TOKENS + text_tokens(output) + IMAGE_TOKENS * len(images)
            case _:
                pass
    return tokens


def tools_tokens(tools: Sequence[DescribedTool]) -> int:
    """Estimate the tokens of the tools' names, descriptions and schemas."""
    return sum(
        MESSAGE_TOKENS
        + text_tokens(tool.name)
        + text_tokens(tool.description or "")
        + text_tokens(json.dumps(tool.parameters or {}, default=dict))
        for tool in tools
    )


# Cuts.


def cuts(messages: Sequence[Message]) -> list[int]:
    """Return the indexes at which the messages can be cut, ascending: 1 to ``len(messages) - 1``.

    The rest begins with a message of the user or the model. No call is separated from its return or
    its approval, and more than a summary is left out.
    """
    needed_from = _needed_from(messages)
    found = []
    needed_until = 0
    is_new = False
    for place, message in enumerate(messages):
        if is_new and place >= needed_until and message.role in {Role.USER, Role.ASSISTANT}:
            found.append(place)
        needed_until = max(needed_until, needed_from.get(place, 0))
        is_new = is_new or message.role is not Role.SUMMARY
    return found


def _needed_from(messages: Sequence[Message]) -> dict[int, int]:
    """Map each message with calls to the index after their last return; to the end if one waits."""
    until: dict[int, int] = {}
    unreturned: dict[str, int] = {}
    last_said = -1
    for place, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            last_said = place
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                unreturned[part.tool_call_id] = place
            elif isinstance(part, ToolReturnPart) and part.tool_call_id in unreturned:
                until[unreturned.pop(part.tool_call_id)] = place + 1
    if last_said in unreturned.values():
        until[last_said] = len(messages)
    return until


def choose_cut(messages: Sequence[Message], keep_tokens: float) -> int | None:
    """Return the first cut that leaves at most ``keep_tokens``, else the last, else None.

    Tokens are estimates of ``message_tokens``.
    """
    places = cuts(messages)
    if not places:
        return None
    left = messages_tokens(messages[places[0] :])
    for cut, following in pairwise(places):
        if left <= keep_tokens:
            return cut
        left -= messages_tokens(messages[cut:following])
    return places[-1]


# Transcripts for summaries.


def transcript(messages: Sequence[Message], limit_chars: int, *, part_chars: int) -> str:
    """Return the messages as text of about ``limit_chars`` at most, oldest first.

    Each part is cut to ``part_chars``. If that is not enough, the oldest messages are left out,
    except a summary at the beginning.
    """
    texts = [_as_text(message, part_chars) for message in messages]
    head = texts[:1] if messages and messages[0].role is Role.SUMMARY else []
    size = sum(map(len, head))
    kept: list[str] = []
    for text in reversed(texts[len(head) :]):
        size += len(text)
        if size > limit_chars and kept:
            kept.append("(Older messages are left out here.)\n")
            break
        kept.append(text[:limit_chars])
    return "\n".join(text for text in [*head, *reversed(kept)] if text)


def _as_text(message: Message, part_chars: int) -> str:
    name = "earlier summary" if message.role is Role.SUMMARY else message.role.value
    lines = []
    for part in message.parts:
        match part:
            case TextPart(text):
                lines.append(f"{name}: {clip(text, part_chars)}")
            case SummaryPart(text):
                lines.append(f"{name}: {text}")
            case ImagePart():
                lines.append(f"{name}: (an image)")
            case ToolCallPart(name=tool, arguments=arguments):
                lines.append(f"{name} calls {tool}: {clip(arguments, part_chars)}")
            case ToolReturnPart(name=tool, status=status, output=output):
                lines.append(f"{tool} returned ({status}): {clip(output, part_chars)}")
            case _:
                pass
    return "".join(f"{line}\n" for line in lines)


def clip(text: str, limit_chars: int) -> str:
    """Return the text, or its beginning with a note about the rest."""
    if len(text) <= limit_chars:
        return text
    return f"{text[:limit_chars]} … ({len(text) - limit_chars} more characters)"
