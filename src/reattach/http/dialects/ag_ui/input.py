"""The new messages of a request, which has the whole conversation of its client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from reattach.domain.approvals import denial
from reattach.domain.errors import ConflictError, InvalidArgumentError
from reattach.domain.ids import new_message_id
from reattach.domain.limits.requests import (
    MAX_MESSAGE_PARTS,
    MAX_SEND_MESSAGES,
    MAX_SYSTEM_CHARS,
)
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolReturnPart,
)
from reattach.engine.base import ClientTool
from reattach.http.content import image_of
from reattach.http.dialects.ag_ui.bodies import (
    ClientMessage,
    FrontendTool,
    ResumeEntry,
    RunInput,
)
from reattach.http.json import Fault, invalid
from reattach.http.parse_send import check_schema_size
from reattach.http.schemas.sending import ImageSource
from reattach.records.base import Run
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.ag_ui import DENIED, PARENT, PROTOCOL, RUN, THREAD
from reattach.wire.dialects.ag_ui_messages import APPROVED, result_id

IDS: Final = "messageIds"
"""The member of ``given`` with the client's ids of its messages: by our id of a message of a user,
or by the id of the call that a result is for."""

LAST: Final = "lastMessageId"
"""The member of ``given`` with the last message that the client had when it began the run."""

_OF_AGENTS: Final = frozenset({"assistant", "reasoning"})
_SENT: Final = frozenset({"user", "tool"})


@dataclass(frozen=True, slots=True)
class ParsedInput:
    """The part of a request that is new to the server."""

    messages: tuple[Message, ...]
    given: Mapping[str, Any]
    instructions: str | None
    earlier: tuple[Message, ...] = ()
    """The messages before the new ones, if the server does not know the conversation."""


def parse_input(
    body: RunInput, now: datetime, newest: Run | None, *, is_known: bool
) -> ParsedInput:
    """Return the new messages of a request, in a conversation that keeps those until ``newest``.

    ``is_known`` says that the server has the conversation. Nothing new means that the client
    repeats its last message.

    Raises:
        InvalidArgumentError: There is no message to send.
        ValidationFailedError: The content of a new message cannot be sent.
    """
    first = _first_new(body.messages, newest)
    new = _sendable(body.messages, first)
    if not new and not body.resume:
        first = _first_of_last_group(body.messages)
        new = _sendable(body.messages, first)
    if not new and not body.resume:
        raise InvalidArgumentError(
            "The request has no message of a user, no result of a tool and no answer to an "
            "interrupt.",
            remedy="Add a message with agent.addMessage() before agent.runAgent().",
        )
    if len(new) > MAX_SEND_MESSAGES:
        message = f"{len(new)} messages are new; at most {MAX_SEND_MESSAGES} can be sent at once."
        raise invalid([Fault(["body", "messages"], message, "too_long")])
    messages, ids = _messages(body.resume or (), new, now)
    given: dict[str, Any] = {THREAD: body.thread_id, RUN: body.run_id, IDS: ids}
    if body.parent_run_id is not None:
        given[PARENT] = body.parent_run_id
    if body.protocol_version is not None:
        given[PROTOCOL] = body.protocol_version
    if denied := _denied(messages):
        given[DENIED] = denied
    if body.messages:
        given[LAST] = body.messages[-1].id
    earlier = () if is_known else _earlier(body.messages[:first], now)
    return ParsedInput(messages, given, _instructions(body), earlier)


def client_tools(tools: Sequence[FrontendTool]) -> tuple[ClientTool, ...]:
    """Raises ValidationFailedError for a name that comes twice, or a schema that is too large."""
    found: dict[str, ClientTool] = {}
    for number, tool in enumerate(tools):
        place: list[str | int] = ["body", "tools", number]
        if tool.name in found:
            raise invalid([Fault([*place, "name"], "Another tool has this name.", "unique")])
        parameters = tool.parameters or {"type": "object", "properties": {}}
        check_schema_size(parameters, [*place, "parameters"])
        found[tool.name] = ClientTool(tool.name, tool.description, parameters)
    return tuple(found.values())


def check_repetition(body: RunInput, run: Run) -> None:
    """Check that a request with the names of ``run`` is the one that began it.

    Only the messages are compared that were new then, because the client has got some of the
    answer since.

    Raises:
        ConflictError: It has other messages.
    """
    given = facts_of(run).given
    sent = set(given.get(IDS, {}).values())
    repeated = [one for one in body.messages if one.id in sent]
    after = _after(body.messages, given.get(LAST))
    has_more = after is not None and bool(_sendable(body.messages, after))
    if has_more or (body.messages and sent and not _same(repeated, run, given)):
        raise ConflictError(
            f"The thread already has another run with the runId '{body.run_id}' (run_id={run.id}).",
            remedy="Send new messages with a new runId; runAgent() makes one by itself.",
            run_id=run.id,
        )


def _same(repeated: Sequence[ClientMessage], run: Run, given: Mapping[str, Any]) -> bool:
    """Return whether the messages are those of the run's input."""
    try:
        messages, ids = _messages((), repeated, run.created_at)
    except Exception:  # noqa: BLE001  content that cannot be sent was not sent
        return False
    contents = _contents(messages, ids)
    return contents == _contents(run.input, given.get(IDS, {}))


def _contents(messages: Sequence[Message], ids: Mapping[str, str]) -> dict[str, object]:
    """Return the content of each message by the client's id."""
    found: dict[str, object] = {}
    for message in messages:
        if message.role is Role.USER and message.id in ids:
            found[ids[message.id]] = message.parts
        for part in message.parts if message.role is Role.APPROVAL else ():
            if isinstance(part, ToolReturnPart) and part.tool_call_id in ids:
                found[ids[part.tool_call_id]] = (part.tool_call_id, part.status, part.output)
    return found


# Which messages are new.


def _first_new(messages: Sequence[ClientMessage], newest: Run | None) -> int:
    """Return the place of the first message that the server does not have."""
    last = None if newest is None else facts_of(newest).given.get(LAST)
    after = _after(messages, last)
    return _first_of_last_group(messages) if after is None else after


def _after(messages: Sequence[ClientMessage], last: str | None) -> int | None:
    """Return the place after the message; None if it is not there."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].id == last:
            return place + 1
    return None


def _first_of_last_group(messages: Sequence[ClientMessage]) -> int:
    """Return the place after the last message of the agent."""
    place = len(messages)
    while place > 0 and messages[place - 1].role not in _OF_AGENTS:
        place -= 1
    return place


def _sendable(messages: Sequence[ClientMessage], first: int) -> list[ClientMessage]:
    """Return the messages from a place on that a client made."""
    return [
        one
        for one in messages[first:]
        if one.role in _SENT and one.id != result_id(one.tool_call_id or "")
    ]


# Messages as the server keeps them.


def _messages(
    resume: Sequence[ResumeEntry], new: Sequence[ClientMessage], now: datetime
) -> tuple[tuple[Message, ...], dict[str, str]]:
    """Return the messages, answers first, and the client's ids of them."""
    answers: list[ContentPart] = [_decision(number, one) for number, one in enumerate(resume)]
    users: list[Message] = []
    ids: dict[str, str] = {}
    for one in new:
        if one.role == "tool":
            answers.append(_returned(one))
            ids[one.tool_call_id or ""] = one.id
        else:
            users.append(_message(Role.USER, _parts(one), now))
            ids[users[-1].id] = one.id
    first = [_message(Role.APPROVAL, tuple(answers), now)] if answers else []
    return (*first, *users), ids


def _message(role: Role, parts: tuple[ContentPart, ...], now: datetime) -> Message:
    return Message(id=new_message_id(), role=role, parts=parts, created_at=now)


def _decision(number: int, entry: ResumeEntry) -> ApprovalPart:
    if entry.status == "cancelled":
        return ApprovalPart(entry.interrupt_id, approve=False)
    payload = entry.payload
    approved = payload.get(APPROVED) if isinstance(payload, dict) else payload
    if not isinstance(approved, bool):
        message = "An answer to this interrupt has the payload {approved: true} or false."
        raise invalid([Fault(["body", "resume", number, "payload"], message, "approved")])
    reason = payload.get("reason") if isinstance(payload, dict) else None
    return ApprovalPart(
        entry.interrupt_id, approve=approved, reason=reason if isinstance(reason, str) else None
    )


def _denied(messages: Sequence[Message]) -> dict[str, str]:
    return {
        part.tool_call_id: denial(part.reason)
        for message in messages
        for part in message.parts
        if isinstance(part, ApprovalPart) and not part.approve
    }


def _returned(message: ClientMessage) -> ToolReturnPart:
    if message.tool_call_id is None:
        raise _fault(message, "A message of the role 'tool' requires 'toolCallId'.")
    if message.error is not None:
        return ToolReturnPart(message.tool_call_id, "", "error", message.error)
    parts = _parts(message)
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    images = tuple(part for part in parts if isinstance(part, ImagePart))
    return ToolReturnPart(message.tool_call_id, "", "success", text, images=images)


def _parts(message: ClientMessage) -> tuple[ContentPart, ...]:
    content = message.content
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        raise _fault(message, "The content is a text or an array of parts.")
    if len(content) > MAX_MESSAGE_PARTS:
        raise _fault(message, f"A message may have at most {MAX_MESSAGE_PARTS} parts.")
    return tuple(_part(message, one) for one in content)


def _part(message: ClientMessage, part: Mapping[str, Any]) -> ContentPart:
    kind, source = part.get("type"), part.get("source")
    text = part.get("text")
    if kind == "text" and isinstance(text, str):
        return TextPart(text)
    if kind == "binary":  # Before 1.0.
        kind = "image" if str(part.get("mimeType", "")).startswith("image/") else kind
        by_url = {"type": "url", "value": part.get("url")}
        source = {**part, "type": "data", "value": part["data"]} if part.get("data") else by_url
    if kind == "image" and isinstance(source, dict) and isinstance(source.get("value"), str):
        media_type = source.get("mimeType")
        if source.get("type") == "url":
            return image_of(ImageSource(type="url", url=source["value"]))
        if source.get("type") == "data" and isinstance(media_type, str):
            data = ImageSource(type="base64", media_type=media_type[:100], data=source["value"])
            return image_of(data)
    raise _fault(message, "A part is a text, or an image by its URL or with its data.")


def _fault(message: ClientMessage, text: str) -> Exception:
    return invalid([Fault(["body", "messages", message.id[:100], "content"], text, "content")])


def _earlier(messages: Sequence[ClientMessage], now: datetime) -> tuple[Message, ...]:
    """Return the texts of a conversation that another server had, from its first question on."""
    roles = {"user": Role.USER, "assistant": Role.ASSISTANT}
    found: list[Message] = []
    for one in messages:
        role = roles.get(one.role)
        if role is None or (role is Role.ASSISTANT and not found):
            continue
        if isinstance(one.content, str) and one.content:
            found.append(_message(role, (TextPart(one.content),), now))
    return tuple(found)


def _instructions(body: RunInput) -> str | None:
    """Return the client's additions to the instructions of the agent, for this run.

    Raises ValidationFailedError if they are too long.
    """
    texts = [
        one.content
        for one in body.messages
        if one.role in {"system", "developer"} and isinstance(one.content, str) and one.content
    ]
    facts = [f"{one.description}: {one.value}" for one in body.context or ()]
    if facts:
        texts.append("\n".join(["About the user's application:", *facts]))
    text = "\n\n".join(texts)
    if len(text) > MAX_SYSTEM_CHARS:
        message = (
            f"Its context and its system messages may have at most {MAX_SYSTEM_CHARS} characters."
        )
        raise invalid([Fault(["body", "context"], message, "too_long")])
    return text or None
