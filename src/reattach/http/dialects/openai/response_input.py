"""From the items of a request to messages.

A client either names the conversation and sends the new items, or keeps the conversation itself and
sends all of it. Then the items after the last one of the agent are new, and the others are the
beginning of a new conversation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from reattach.domain.ids import new_message_id
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
from reattach.http.dialects.openai.response_bodies import (
    InputCall,
    InputImage,
    InputItem,
    InputItems,
    InputMessage,
    InputPart,
    InputReasoning,
    InputRequest,
    InputReturn,
    InputServerCall,
    InputText,
    InputVerdict,
)
from reattach.http.json import Fault, invalid
from reattach.http.schemas.sending import ImageSource
from reattach.wire.dialects.openai_items import call_id_of

_ROLES = {
    "user": Role.USER,
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "assistant": Role.ASSISTANT,
}
_NO_INPUT = "There is nothing new in it. End it with a message of the user, or with an output."


@dataclass(frozen=True, slots=True)
class ResponseInput:
    """The messages that an input consists of."""

    new: tuple[Message, ...]
    """At least one; the answers to the agent's calls come first, in one message."""
    earlier: tuple[Message, ...] = ()
    """Those before, if the client keeps the conversation itself."""


def parse_input(sent: str | InputItems, now: datetime, *, is_known: bool) -> ResponseInput:
    """Return the messages of an input. ``is_known``: the server has the conversation before it.

    Raises:
        ValidationFailedError: It has nothing new, or an image that cannot be used.
    """
    if isinstance(sent, str):
        return ResponseInput((_message(Role.USER, (TextPart(sent),), now),))
    begin = 0
    for number, item in enumerate(sent):
        if not is_known and _is_of_agent(item):
            begin = number + 1
    new = _new_messages(sent[begin:], now)
    if not new:
        raise invalid([Fault(["body", "input"], _NO_INPUT, "no_input")])
    if is_known:
        return ResponseInput(new)
    decided = {
        call_id_of(item.approval_request_id)
        for item in sent[begin:]
        if isinstance(item, InputVerdict)
    }
    # The server would run a call that has no output once the others of its message have theirs.
    returned = _returned_later(sent)
    earlier = [
        (item, is_returned or (isinstance(item, InputRequest) and call_id_of(item.id) in decided))
        for item, is_returned in zip(sent[:begin], returned, strict=False)
        if is_returned or not isinstance(item, InputCall)
    ]
    return ResponseInput(new, _earlier(earlier, now))


def earlier_messages(items: Sequence[InputItem], now: datetime) -> tuple[Message, ...]:
    """Return items as the messages of a conversation, in which no call waits.

    Raises:
        ValidationFailedError: An image cannot be used.
    """
    return _earlier(list(zip(items, _returned_later(items), strict=True)), now)


def _returned_later(items: Sequence[InputItem]) -> list[bool]:
    """Return for each item whether it is a call of the client whose output follows it."""
    outputs: set[str] = set()
    found = []
    for item in reversed(items):
        if isinstance(item, InputReturn):
            outputs.add(item.call_id)
        found.append(isinstance(item, InputCall) and item.call_id in outputs)
        if isinstance(item, InputCall):
            outputs.discard(item.call_id)
    return found[::-1]


def _earlier(items: Sequence[tuple[InputItem, bool]], now: datetime) -> tuple[Message, ...]:
    """Return items as messages. A flag says that the call of its item waits, or has waited."""
    messages: list[Message] = []
    names = {one.call_id: one.name for one, _ in items if isinstance(one, InputCall)}
    for item, waits in items:
        for role, part in _earlier_parts(item, names, waits=waits):
            last = messages[-1] if messages else None
            joins = role is not Role.USER and role is not Role.SYSTEM
            if joins and last is not None and last.role is role:
                messages[-1] = msgspec.structs.replace(last, parts=(*last.parts, *part))
            else:
                messages.append(_message(role, part, now))
    return tuple(messages)


def _is_of_agent(item: InputItem) -> bool:
    if isinstance(item, InputMessage):
        return item.role == "assistant"
    return isinstance(item, InputCall | InputServerCall | InputRequest | InputReasoning)


def _new_messages(items: Sequence[InputItem], now: datetime) -> tuple[Message, ...]:
    answers: list[ContentPart] = []
    others: list[Message] = []
    for item in items:
        match item:
            case InputReturn():
                answers.append(_return_of(item))
            case InputVerdict():
                call_id = call_id_of(item.approval_request_id)
                answers.append(ApprovalPart(call_id, item.approve, item.reason))
            case InputMessage():
                others.append(_message(_ROLES[item.role], parts_of(item.content), now))
            case _:
                pass  # The agent's own items are not new.
    first = [_message(Role.APPROVAL, tuple(answers), now)] if answers else []
    return (*first, *others)


def _earlier_parts(
    item: InputItem, names: Mapping[str, str], *, waits: bool
) -> Iterator[tuple[Role, tuple[ContentPart, ...]]]:
    """Yield the parts of an item with the roles of their messages."""
    match item:
        case InputMessage():
            yield _ROLES[item.role], parts_of(item.content)
        case InputCall(call_id=call_id):
            call = ToolCallPart(call_id, item.name, item.arguments, waits)
            yield Role.ASSISTANT, (call,)
        case InputRequest():
            if waits:  # Otherwise it was decided, and an mcp_call follows if it ran.
                call = ToolCallPart(call_id_of(item.id), item.name, item.arguments, True)
                yield Role.ASSISTANT, (call,)
        case InputServerCall():
            call_id = item.id.removeprefix("mcp_")
            failed = item.error is not None
            output = msgspec.json.encode(item.error).decode() if failed else item.output or ""
            call = ToolCallPart(call_id, item.name, item.arguments)
            yield Role.ASSISTANT, (call,)
            returned = ToolReturnPart(call_id, item.name, "success", output)
            yield Role.TOOL, (call.error_return(output) if failed else returned,)
        case InputReturn():
            output_parts = (_return_of(item, names.get(item.call_id, "")),)
            yield Role.APPROVAL, output_parts
            yield Role.TOOL, output_parts
        case InputReasoning() | InputVerdict():
            return


def _return_of(item: InputReturn, name: str = "") -> ToolReturnPart:
    if isinstance(item.output, str):
        return ToolReturnPart(item.call_id, name, "success", item.output)
    parts = parts_of(item.output)
    return ToolReturnPart(
        item.call_id,
        name,
        "success",
        "".join(part.text for part in parts if isinstance(part, TextPart)),
        images=tuple(part for part in parts if isinstance(part, ImagePart)),
    )


def parts_of(content: str | Sequence[InputPart]) -> tuple[ContentPart, ...]:
    """Return the parts of a message. Raises ValidationFailedError for an image by file id."""
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(one) for one in content)


def _part(part: InputPart) -> ContentPart:
    if isinstance(part, InputImage):
        if part.image_url is None:
            message = "Reattach keeps no files. Send 'image_url' with a URL or a data URL."
            raise invalid([Fault(["body", "input", "image_url"], message, "image_source")])
        return image_of(ImageSource(type="url", url=part.image_url, detail=part.detail))
    return TextPart(part.text if isinstance(part, InputText) else part.refusal)


def _message(role: Role, parts: tuple[ContentPart, ...], now: datetime) -> Message:
    return Message(id=new_message_id(), role=role, parts=parts, created_at=now)
