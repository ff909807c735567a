"""The messages of AG-UI, and their ids. Pure functions.

Every part of an answer is a message of its own, except that the calls of one message of ours share
one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from reattach.domain.messages import (
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)

Json = dict[str, Any]

APPROVED: Final = "approved"
"""The member of an answer to an interrupt that says whether the call may run."""

_RESPONSE_SCHEMA: Final = {
    "type": "object",
    "properties": {APPROVED: {"type": "boolean"}, "reason": {"type": "string"}},
    "required": [APPROVED],
}


# Ids.


def part_id(message_id: str, index: int) -> str:
    """Return the id of a text or of reasoning."""
    return f"{message_id}-{index}"


def calls_id(message_id: str) -> str:
    """Return the id of the message with the calls of a message of ours."""
    return f"{message_id}-calls"


def result_id(tool_call_id: str) -> str:
    """Return the id of the message with the result of a call that the server ran."""
    return f"{tool_call_id}-result"


def span_id(message_id: str) -> str:
    """Return the id of the span of reasoning around a message, which must be another one."""
    return f"{message_id}-span"


def interrupt(tool_call_id: str, name: str) -> Json:
    """Return the question whether a call may run. Its id is that of the call."""
    return {
        "id": tool_call_id,
        "reason": "tool_call",
        "toolCallId": tool_call_id,
        "message": f"May the tool '{name}' run?",
        "responseSchema": _RESPONSE_SCHEMA,
    }


# Stored messages.


def history(messages: Iterable[Message], client_ids: Mapping[str, str]) -> list[Json]:
    """Return stored messages as a client shows them.

    ``client_ids`` are the ids that clients gave to their own messages: by our id of a message, or
    by the id of the call whose result it is.
    """
    return [one for message in messages for one in _shown(message, client_ids)]


def _shown(message: Message, client_ids: Mapping[str, str]) -> Iterator[Json]:
    match message.role:
        case Role.USER:
            message_id = client_ids.get(message.id, message.id)
            yield {"id": message_id, "role": "user", "content": _content(message)}
        case Role.ASSISTANT:
            yield from _answer(message)
        case Role.TOOL:
            for part in message.parts:
                if isinstance(part, ToolReturnPart):
                    yield tool_message(part, client_ids)
        case _:
            pass  # Answers of clients come as the returns after them; the rest is not shown.


def tool_message(part: ToolReturnPart, client_ids: Mapping[str, str]) -> Json:
    """Return the message with the result of a call."""
    call_id = part.tool_call_id
    message_id = client_ids.get(call_id, result_id(call_id))
    return {"id": message_id, "role": "tool", "toolCallId": call_id, "content": part.output}


def _answer(message: Message) -> Iterator[Json]:
    index = 0
    calls: list[ToolCallPart] = []
    for part in message.parts:
        message_id = part_id(message.id, index)
        match part:
            case TextPart(text):
                yield {"id": message_id, "role": "assistant", "content": text}
            case ReasoningPart(text, signature):
                yield _reasoning(message_id, text, signature)
            case HiddenReasoningPart(text=sealed):
                if sealed:
                    yield _reasoning(message_id, "", sealed)
            case ToolCallPart():
                calls.append(part)
                continue
            case _:
                continue
        index += 1
    if calls:
        shown_calls = [_call(call) for call in calls]
        yield {"id": calls_id(message.id), "role": "assistant", "toolCalls": shown_calls}


def _reasoning(message_id: str, text: str, encrypted: str | None) -> Json:
    shown = {"id": message_id, "role": "reasoning", "content": text}
    return {**shown, "encryptedValue": encrypted} if encrypted else shown


def _call(call: ToolCallPart) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def _content(message: Message) -> str | list[Json]:
    if not message.has_images:
        return message.text
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else _image(part)
        for part in message.parts
        if isinstance(part, TextPart | ImagePart)
    ]


def _image(part: ImagePart) -> Json:
    if part.url is not None:
        return {"type": "image", "source": {"type": "url", "value": part.url}}
    media_type = part.media_type or "image/png"
    source = {"type": "data", "value": part.base64_data or "", "mimeType": media_type}
    return {"type": "image", "source": source}


def before(messages: Sequence[Json], shown: Sequence[Json]) -> list[Json]:
    """Return the messages of a snapshot that takes a client back to ``messages``.

    ``shown`` are those that the client has. Clients keep their reasoning unless a snapshot has
    some, and would then add the repeated one to it. So the snapshot ends with the first reasoning
    that has to go, and with what stands before it, emptied: the events fill them again.
    """
    kept = {one["id"] for one in messages}
    further = [one for one in shown if one["id"] not in kept and one.get("role") in _OF_AGENTS]
    if any(one.get("role") == "reasoning" for one in messages):
        return [*messages]
    places = [n for n, one in enumerate(further) if one.get("role") == "reasoning"]
    return [*messages, *(_emptied(one) for one in further[: places[0] + 1 if places else 0])]


_OF_AGENTS: Final = frozenset({"assistant", "reasoning"})


def _emptied(message: Json) -> Json:
    emptied: Json = {"id": message["id"], "role": message["role"]}
    if "content" in message:
        emptied["content"] = ""
    return {**emptied, "toolCalls": []} if "toolCalls" in message else emptied
