"""Messages of a conversation, as stored and as models get them."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

import msgspec

from reattach.domain.ids import MessageId, RunId, StepId


class TextPart(msgspec.Struct, frozen=True, tag="text", gc=False):
    text: str


IMAGE_TYPES: Final = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
"""Media types of images that all providers accept."""

UNREACHABLE: Final = "(An image that can no longer be fetched.)"
"""Replaces an image whose URL cannot be fetched, or must not be."""

UNSEEN: Final = "(An image that this model cannot see.)"
"""Replaces an image for a model that does not accept images."""


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image by URL, or by its bytes in base64."""

    url: str | None
    media_type: str | None = None
    base64_data: str | None = None
    detail: str | None = None
    """The requested resolution, where the provider supports it: low, high or auto."""


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning", gc=False):
    text: str
    signature: str | None = None


class HiddenReasoningPart(msgspec.Struct, frozen=True, tag="hidden_reasoning"):
    """Reasoning that the provider does not show."""

    state: Literal["redacted", "omitted"]
    text: str | None = None


class ToolCallPart(msgspec.Struct, frozen=True, tag="tool_call"):
    tool_call_id: str
    name: str
    arguments: str
    """JSON text."""
    needs_approval: bool = False

    def error_return(self, text: str) -> "ToolReturnPart":
        """Return the return of a call that failed or did not run."""
        return ToolReturnPart(self.tool_call_id, self.name, "error", text)


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A fragment of a tool call: its name first, then its arguments as JSON text.

    Pieces of a name that come before the arguments are joined. A second name under an id whose
    arguments are complete begins another call, which gets an id of its own.

    A call that needs approval ends the turn after its step, with ``requires_approval``. The client
    then runs the call, or has the engine run it (``Turn.due``).
    """

    tool_call_id: str
    name: str | None = None
    arguments: str | None = None
    needs_approval: bool = False


class ToolReturnPart(msgspec.Struct, frozen=True, tag="tool_return"):
    tool_call_id: str
    name: str
    status: Literal["success", "error"]
    output: str
    stdout: tuple[str, ...] | None = None
    stderr: tuple[str, ...] | None = None
    images: tuple[ImagePart, ...] = ()
    """Images that a client's tool returned in addition to text."""


class ApprovalPart(msgspec.Struct, frozen=True, tag="approval"):
    """A client's decision on a tool call that waits for approval."""

    tool_call_id: str
    """Empty: all waiting calls."""
    approve: bool
    reason: str | None = None
    request_id: str | None = None
    """The message with the request, if the client named it."""


class CompactionStats(msgspec.Struct, frozen=True):
    """The sizes before and after a compaction. Tokens are estimates."""

    trigger: str
    context_window: int
    """In tokens."""
    messages_count_before: int
    messages_count_after: int
    context_tokens_before: int | None = None
    context_tokens_after: int | None = None


class SummaryPart(msgspec.Struct, frozen=True, tag="summary"):
    """The text that replaces the messages before ``kept_from`` for models."""

    text: str
    kept_from: MessageId | None = None
    """The first message that stays in context. If it is None or does not exist, all messages before
    this summary are left out."""
    stats: CompactionStats | None = None


ContentPart = (
    TextPart
    | ImagePart
    | ReasoningPart
    | HiddenReasoningPart
    | ToolCallPart
    | ToolReturnPart
    | ApprovalPart
    | SummaryPart
)


OutputPart = (
    TextPart | ReasoningPart | HiddenReasoningPart | ToolCallPart | ToolReturnPart | SummaryPart
)
"""A part of a run's output."""

Fragment = OutputPart | ToolCallDelta
"""A part of a run's output, or a piece of a text, of reasoning or of a call."""


def awaits_approval(fragment: Fragment) -> bool:
    return isinstance(fragment, ToolCallPart | ToolCallDelta) and fragment.needs_approval


def join_fragments(fragments: Sequence[Fragment]) -> tuple[OutputPart, ...]:
    """Return the part that the fragments form, or the calls in the order in which they began."""
    match fragments[0]:
        case TextPart():
            texts = [one.text for one in fragments if isinstance(one, TextPart)]
            return (TextPart("".join(texts)),)
        case ReasoningPart():
            reasoning = [one for one in fragments if isinstance(one, ReasoningPart)]
            signature = "".join(one.signature for one in reasoning if one.signature) or None
            return (ReasoningPart("".join(one.text for one in reasoning), signature),)
        case ToolCallPart(needs_approval=waits) | ToolCallDelta(needs_approval=waits):
            names: dict[str, str] = {}
            arguments: dict[str, list[str]] = {}
            for call in fragments:
                if isinstance(call, ToolCallPart | ToolCallDelta):
                    names[call.tool_call_id] = names.get(call.tool_call_id) or call.name or ""
                    arguments.setdefault(call.tool_call_id, []).append(call.arguments or "")
            return tuple(
                ToolCallPart(call_id, name, "".join(arguments[call_id]), waits)
                for call_id, name in names.items()
            )
        case whole:
            return (whole,)


def part_chars(part: object) -> int:
    """Return the number of characters that a part or fragment holds; 0 for anything else."""
    match part:
        case TextPart(text) | SummaryPart(text):
            return len(text)
        case ReasoningPart(text, signature):
            return len(text) + len(signature or "")
        case HiddenReasoningPart(text=text):
            return len(text or "")
        case ImagePart(url=url, base64_data=data):
            return len(url or "") + len(data or "")
        case ToolCallPart(call_id, name, arguments) | ToolCallDelta(call_id, name, arguments):
            return len(call_id) + len(name or "") + len(arguments or "")
        case ToolReturnPart(output=output, stdout=stdout, stderr=stderr, images=images):
            lines = sum(map(len, (*(stdout or ()), *(stderr or ()))))
            return len(output) + lines + sum(map(part_chars, images))
        case _:
            return 0


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    APPROVAL = "approval"
    """A client's answer to an approval request. Models do not get it; its effects reach them as
    returns of tools."""
    SUMMARY = "summary"
    """A summary of older messages for the context; has one SummaryPart."""


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One stored message. An assistant's message has the whole output of a step, in order.

    The garbage collector does not look at messages: many are kept, and none is part of a cycle.
    """

    id: MessageId
    role: Role
    parts: tuple[ContentPart, ...]
    created_at: datetime
    name: str | None = None
    otid: str | None = None
    """The client's idempotency key, on messages that a client sent."""
    sender_id: str | None = None
    run_id: RunId | None = None
    step_id: StepId | None = None

    @property
    def text(self) -> str:
        """All its text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def has_images(self) -> bool:
        """Whether the message or one of its returns has an image."""
        return any(
            isinstance(part, ImagePart) or (isinstance(part, ToolReturnPart) and part.images)
            for part in self.parts
        )


INPUT_TEXT_CHARS: Final = 500
"""The length of the input by which people recognise and find a run."""


def input_text(sent: Sequence[Message]) -> str:
    """Return the beginning of the texts of the messages, one below the other."""
    texts: list[str] = []
    left = INPUT_TEXT_CHARS
    for message in sent:
        for part in message.parts:
            if isinstance(part, TextPart) and left > 0:
                texts.append(part.text[:left])
                left -= len(texts[-1]) + 1
    return "\n".join(texts)
