"""Messages of a conversation, as they are stored and as models see them."""

from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

import msgspec

from reattach.domain.ids import MessageId, RunId, StepId


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


IMAGE_TYPES: Final = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
"""Media types of images that all providers take."""

UNREACHABLE: Final = "(An image that can no longer be fetched.)"
"""Stands for an image whose URL leads nowhere, or to where it may not lead."""

UNSEEN: Final = "(An image that this model can not see.)"
"""What a model is told of an image that it can not take."""


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image by URL, or by its bytes in base64."""

    url: str | None
    media_type: str | None = None
    base64_data: str | None = None
    detail: str | None = None
    """How closely the model is to look, where its provider lets one choose: low, high or auto."""


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning"):
    text: str
    signature: str | None = None


class HiddenReasoningPart(msgspec.Struct, frozen=True, tag="hidden_reasoning"):
    """The model reasoned, and the provider does not show it."""

    state: Literal["redacted", "omitted"]
    text: str | None = None


class ToolCallPart(msgspec.Struct, frozen=True, tag="tool_call"):
    tool_call_id: str
    name: str
    arguments: str
    """JSON text."""
    needs_approval: bool = False


class ToolReturnPart(msgspec.Struct, frozen=True, tag="tool_return"):
    tool_call_id: str
    name: str
    status: Literal["success", "error"]
    output: str
    stdout: tuple[str, ...] | None = None
    stderr: tuple[str, ...] | None = None
    images: tuple[ImagePart, ...] = ()
    """What a client's tool returned beside its text."""


class ApprovalPart(msgspec.Struct, frozen=True, tag="approval"):
    """A client's word on a tool call that waited: it may run, or may not."""

    tool_call_id: str
    """Empty: all calls that wait."""
    approve: bool
    reason: str | None = None
    request_id: str | None = None
    """The message that asked, where the client named it."""


class CompactionStats(msgspec.Struct, frozen=True):
    """What a compaction came from, and what it did. Tokens are estimates."""

    trigger: str
    context_window: int
    """In tokens."""
    messages_count_before: int
    messages_count_after: int
    context_tokens_before: int | None = None
    context_tokens_after: int | None = None


class SummaryPart(msgspec.Struct, frozen=True, tag="summary"):
    """What a model is told instead of the messages before ``kept_from``."""

    text: str
    kept_from: MessageId | None = None
    """The first message that stays in context; one that is not there, or None: all before this
    summary are left out."""
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


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    APPROVAL = "approval"
    """A client's answer to an approval request, as it was sent. No model is shown it: what it says
    reaches the model as returns of tools."""
    SUMMARY = "summary"
    """What stands for older messages in the context; has one SummaryPart."""


class Message(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One stored message. An assistant's message holds all that one step gave, in order.

    Its ``__dict__`` is for values that are derived from it once, such as its size in tokens.
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
        """Whether an image is to be told with it, of its own or of a return."""
        return any(
            isinstance(part, ImagePart) or (isinstance(part, ToolReturnPart) and part.images)
            for part in self.parts
        )
