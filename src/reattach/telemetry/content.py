"""Messages as the attributes of spans carry them, for those who switched content on."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

MAX_CONTENT_CHARS: Final = 256 * 1024
"""The most characters of an attribute. The oldest messages are left out beyond that."""

_ROLES: Final = {Role.APPROVAL: "user", Role.SUMMARY: "user"}
"""Roles that the convention does not have."""


def messages_json(messages: Sequence[Message]) -> str:
    """Return the newest of the messages that fit, as a JSON array, oldest first."""
    kept: list[str] = []
    left = MAX_CONTENT_CHARS
    for message in reversed(messages):
        text = _dumps(_message(message))
        left -= len(text) + 1
        if left < 0:
            break
        kept.append(text)
    return f"[{','.join(reversed(kept))}]"


def instructions_json(system: str) -> str:
    """Return the system prompt as a JSON array, cut off if it is too long."""
    return _dumps([{"type": "text", "content": system[:MAX_CONTENT_CHARS]}])


def cut(text: str) -> str:
    """Return the text, cut off if it is too long."""
    return text[:MAX_CONTENT_CHARS]


def _message(message: Message) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role.value)
    return {"role": role, "parts": [*_parts(message.parts)]}


def _parts(parts: Sequence[ContentPart]) -> Iterable[dict[str, Any]]:
    for part in parts:
        match part:
            case TextPart(text) | SummaryPart(text):
                yield {"type": "text", "content": text}
            case ReasoningPart(text):
                yield {"type": "reasoning", "content": text}
            case HiddenReasoningPart(state):
                yield {"type": "reasoning", "content": f"({state})"}
            case ToolCallPart(call_id, name, arguments):
                call = {"type": "tool_call", "id": call_id, "name": name}
                yield {**call, "arguments": _parsed(arguments)}
            case ToolReturnPart(call_id, _, _, output):
                yield {"type": "tool_call_response", "id": call_id, "response": output}
            case ApprovalPart(call_id, approve):
                answer = {"type": "reattach.approval", "id": call_id}
                yield {**answer, "approve": approve}
            case ImagePart(url, media_type):
                image = {"type": "uri", "modality": "image", "mime_type": media_type}
                is_inline = url is None or url.startswith("data:")
                yield {**image, "uri": "(inline)" if is_inline else url}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
