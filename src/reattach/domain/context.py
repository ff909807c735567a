"""The context of a conversation: which messages a model is told, and how large they are. Pure.

A compaction takes nothing away. It adds a summary to the messages, which names the first older one
that stays in context; so the context is derived from the messages alone, for every process and
after every restart, and a fork has that of its source.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Protocol

import msgspec

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
"""Of UTF-8: what common tokenizers come to for English; for most other texts it counts more."""

MESSAGE_TOKENS: Final = 4
"""What a message takes beside its text."""

IMAGE_TOKENS: Final = 1000
"""An image: what providers count for one of some 1000 by 1000 pixels."""

_SUMMARY: Final = (
    "What was said before in this conversation was left out to save space. This is a summary of "
    "it:\n\n{}"
)


class DescribedTool(Protocol):
    """What a model is told of a tool."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str | None: ...

    @property
    def parameters(self) -> object: ...


def in_context(messages: Sequence[Message]) -> list[Message]:
    """Those of a thread's messages, the system message first, that are in context.

    In the order in which a model is told them: the system message, the newest summary, what it
    left, and the rest.
    """
    summaries = {one.id: summary_of(one) for one in messages if one.role is Role.SUMMARY}
    by_id = {one.id: one for one in messages}
    return [by_id[one] for one in ids_in_context(list(by_id), summaries)]


def ids_in_context(
    ids: Sequence[MessageId], summaries: Mapping[MessageId, SummaryPart]
) -> list[MessageId]:
    """The same of the messages' ids, with those that are summaries."""
    newest = max((place for place, one in enumerate(ids) if one in summaries), default=None)
    if newest is None:
        return list(ids)
    kept_from = summaries[ids[newest]].kept_from
    places = (place for place in range(newest) if ids[place] == kept_from)
    first = next(places, newest)
    left = [one for one in ids[first:newest] if one not in summaries]
    return [ids[0], ids[newest], *left, *ids[newest + 1 :]]


def summary_of(message: Message) -> SummaryPart:
    part = message.parts[0]
    assert isinstance(part, SummaryPart), f"{message.id} is no summary"
    return part


def summary_as_user_message(message: Message) -> Message:
    """A summary as models are told it: as a user's message. Every other message as it is."""
    if message.role is not Role.SUMMARY:
        return message
    text = _SUMMARY.format(summary_of(message).text)
    return msgspec.structs.replace(message, role=Role.USER, parts=(TextPart(text),))


# How large it is.


def text_tokens(text: str) -> int:
    """An estimate, rounded up."""
    return -(-len(text.encode(errors="surrogatepass")) // BYTES_PER_TOKEN)


def message_tokens(message: Message) -> int:
    """An estimate of what the model is told of it; reasoning is not told again.

    It is made once for each message, since every send asks for that of the whole context.
    """
    known: int | None = message.__dict__.get("tokens")
    if known is None:
        known = message.__dict__["tokens"] = _message_tokens(message)
    return known


def messages_tokens(messages: Iterable[Message]) -> int:
    """The sum of the messages' estimates."""
    total = 0
    for message in messages:  # Every send goes through its whole context here.
        known = message.__dict__.get("tokens")
        total += message_tokens(message) if known is None else known
    return total


def _message_tokens(message: Message) -> int:
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
    """An estimate of what the tools' names, descriptions and schemas take."""
    return sum(
        MESSAGE_TOKENS
        + text_tokens(tool.name)
        + text_tokens(tool.description or "")
        + text_tokens(json.dumps(tool.parameters or {}, default=dict))
        for tool in tools
    )


# Where it can be cut.


def cuts(told: Sequence[Message]) -> list[int]:
    """The places before which messages can be left out, ascending: 1 to ``len(told) - 1``.

    What is left begins with a user's or the model's message. No call is parted from its return,
    nor from what is decided on it, and something else than a summary is left out.
    """
    needed_from = _needed_from(told)
    found = []
    needed_until = 0
    is_new = False
    for place, message in enumerate(told):
        if is_new and place >= needed_until and message.role in {Role.USER, Role.ASSISTANT}:
            found.append(place)
        needed_until = max(needed_until, needed_from.get(place, 0))
        is_new = is_new or message.role is not Role.SUMMARY
    return found


def _needed_from(told: Sequence[Message]) -> dict[int, int]:
    """For each message with calls the place after their last return; after all if one waits."""
    until: dict[int, int] = {}
    unreturned: dict[str, int] = {}
    last_said = -1
    for place, message in enumerate(told):
        if message.role is Role.ASSISTANT:
            last_said = place
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                unreturned[part.tool_call_id] = place
            elif isinstance(part, ToolReturnPart) and part.tool_call_id in unreturned:
                until[unreturned.pop(part.tool_call_id)] = place + 1
    if last_said in unreturned.values():
        until[last_said] = len(told)
    return until


def choose_cut(told: Sequence[Message], keep_tokens: float) -> int | None:
    """The first cut that leaves at most ``keep_tokens``, else the last one; None if there is none.

    Tokens are estimates of ``message_tokens``.
    """
    places = cuts(told)
    if not places:
        return None
    left = messages_tokens(told[places[0] :])
    for cut, following in pairwise(places):
        if left <= keep_tokens:
            return cut
        left -= messages_tokens(told[cut:following])
    return places[-1]


# What a summary is made of.


def transcript(messages: Sequence[Message], limit_chars: int, *, part_chars: int) -> str:
    """The messages as text of at most ``limit_chars`` or so, oldest first.

    A part is cut to ``part_chars``. Where that is not enough the oldest are left out, but for a
    summary at the beginning.
    """
    texts = [_told(message, part_chars) for message in messages]
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


def _told(message: Message, part_chars: int) -> str:
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
    """The text, or its beginning and a word that there was more."""
    if len(text) <= limit_chars:
        return text
    return f"{text[:limit_chars]} … ({len(text) - limit_chars} more characters)"
