"""Messages of the AI SDK as messages of a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.ids import DIALECT_OTID, MessageId, RunId, new_message_id
from reattach.domain.limits.requests import MAX_CHAT_MESSAGES, MAX_KEPT_JSON_BYTES
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.http.content import image_of
from reattach.http.dialects.ai_sdk.bodies import UiMessageBody
from reattach.http.json import Fault, invalid
from reattach.http.schemas.sending import ImageSource

_DECIDED: Final = frozenset({"approval-responded", "output-available", "output-error"})
OTID: Final = f"{DIALECT_OTID}ai-sdk:"
"""The beginning of the OTIDs of this dialect."""

ANSWERED: Final = "answered"
"""The kind of requests whose first message is an answer; the OTIDs of others have a number then."""

OUTPUTS: Final = "outputs"
"""The member of ``Run.request_extras.given`` with results of the client's tools that are no text,
by the ids of their calls."""

METADATA: Final = "metadata"
"""The member with the metadata of a person's message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's answer to the calls that a run asked for."""

    message: Message
    asked_by: RunId | MessageId
    """The run that asked, or its message if the run is not in the conversation."""
    outputs: Mapping[str, Any]
    """The results that are no text."""


def user_message(sent: UiMessageBody, now: datetime) -> Message:
    """Return the message of a person. Raises ValidationFailedError."""
    parts = _contents(sent)
    if not parts:
        message = "The message has neither text nor an image."
        raise invalid([Fault(["body", "messages", "parts"], message, "empty")])
    return Message(id=new_message_id(), role=Role.USER, parts=parts, created_at=now)


def earlier_messages(sent: Sequence[UiMessageBody], now: datetime) -> list[Message]:
    """Return the messages of a chat that began elsewhere, without the calls of tools.

    Raises ValidationFailedError if there are too many.
    """
    if len(sent) > MAX_CHAT_MESSAGES:
        message = f"A new chat may begin with at most {MAX_CHAT_MESSAGES} earlier messages."
        raise invalid([Fault(["body", "messages"], message, "too_long")])
    messages = []
    for one in sent:
        parts = _contents(one)
        if one.role == "assistant":
            parts = tuple(part for part in parts if isinstance(part, TextPart))
        if parts and one.role != "system":
            messages.append(
                Message(
                    id=new_message_id(),
                    role=Role(one.role),
                    parts=parts,
                    created_at=now,
                    otid=f"{OTID}earlier::{one.id}",
                )
            )
    return messages


def shown_id(message: Message) -> str:
    """Return the id that the client gave to a message; its own id if another client sent it."""
    otid = message.otid or ""
    name = otid.removeprefix(OTID)
    if name == otid or name.count(":") < 2:
        return message.id
    kind, _, shown = name.split(":", 2)
    return shown.rpartition(":")[0] if kind == ANSWERED else shown


def _contents(sent: UiMessageBody) -> tuple[ContentPart, ...]:
    parts: list[ContentPart] = []
    for number, part in enumerate(sent.parts):
        place: list[str | int] = ["body", "messages", "parts", number]
        kind = part.get("type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise invalid([Fault([*place, "text"], "A text is required.", "string_type")])
            if part["text"]:
                parts.append(TextPart(part["text"]))
        elif kind == "file" and sent.role == "user":
            parts.append(_image(part, place))
    return tuple(parts)


def _image(part: Mapping[str, Any], place: list[Any]) -> ImagePart:
    media_type, url = part.get("mediaType"), part.get("url")
    if not isinstance(media_type, str) or not media_type.startswith("image/"):
        message = "Only images can be sent as files. Send the content of other files as text."
        raise invalid([Fault([*place, "mediaType"], message, "media_type")])
    if not isinstance(url, str):
        raise invalid([Fault([*place, "url"], "A URL is required.", "string_type")])
    return image_of(ImageSource(type="url", url=url))


def user_parts(message: Message) -> list[dict[str, Any]]:
    """Return the parts of a person's message as the client sent them."""
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        match part:
            case TextPart(text):
                parts.append({"type": "text", "text": text})
            case ImagePart(url, media_type, data):
                shown = url or f"data:{media_type};base64,{data}"
                kind = media_type or "image/*"
                parts.append({"type": "file", "mediaType": kind, "url": shown})
            case _:
                pass
    return parts


def decided_ids(sent: UiMessageBody) -> set[str]:
    """Return the ids of all calls of a message that have a decision or a result."""
    return {
        part["toolCallId"]
        for part in sent.parts
        if part.get("state") in _DECIDED and isinstance(part.get("toolCallId"), str)
    }


def answer_of(
    sent: UiMessageBody,
    waiting: Sequence[ToolCallPart],
    asked_by: RunId | MessageId,
    now: datetime,
) -> Answer:
    """Return the answer in the assistant's message to calls that wait.

    Raises:
        InvalidArgumentError: A call has neither a decision nor a result.
    """
    sent_parts = {part.get("toolCallId"): part for part in sent.parts}
    parts: list[ContentPart] = []
    outputs: dict[str, Any] = {}
    for call in waiting:
        part = sent_parts.get(call.tool_call_id) or {}
        state = part.get("state")
        if state == "approval-responded":
            approves, reason = part["approval"]["approved"], part["approval"].get("reason")
            parts.append(
                ApprovalPart(
                    call.tool_call_id, approves, reason if isinstance(reason, str) else None
                )
            )
        elif state == "output-available":
            output = part.get("output")
            if not isinstance(output, str):
                outputs[call.tool_call_id] = output
                output = msgspec.json.encode(output).decode()
            parts.append(ToolReturnPart(call.tool_call_id, call.name, "success", output))
        elif state == "output-error":
            text = str(part.get("errorText") or "The tool failed.")
            parts.append(call.error_return(text))
        else:
            raise InvalidArgumentError(
                f"The call {call.tool_call_id} of '{call.name}' has no answer yet.",
                remedy="Answer all waiting calls of the message, then send it: "
                "`sendAutomaticallyWhen` of `useChat` does that.",
            )
    if len(msgspec.json.encode(outputs)) > MAX_KEPT_JSON_BYTES:
        outputs = {}  # They are shown as text after a reload.
    message = Message(id=new_message_id(), role=Role.APPROVAL, parts=tuple(parts), created_at=now)
    return Answer(message, asked_by, outputs)
