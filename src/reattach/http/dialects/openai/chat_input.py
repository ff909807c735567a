"""The messages of a chat completion: a whole conversation, of which the last ones are new."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from reattach.domain.ids import new_message_id, new_step_id
from reattach.domain.limits.requests import MAX_SYSTEM_CHARS
from reattach.domain.messages import (
    ContentPart,
    Message,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.http.content import image_of
from reattach.http.dialects.openai.chat_bodies import (
    ChatAssistant,
    ChatImage,
    ChatInstructions,
    ChatMessage,
    ChatReturn,
    ChatText,
    ChatUser,
    TextParts,
)
from reattach.http.json import Fault, invalid
from reattach.http.schemas.sending import ImageSource


@dataclass(frozen=True, slots=True)
class ChatInput:
    """The parts of a conversation as a client repeats it."""

    instructions: str | None
    """The texts of its system messages, wherever they stand."""
    earlier: tuple[Message, ...]
    """Everything up to the last answer of the assistant."""
    new: tuple[Message, ...]
    """The messages after it; at least one."""


def parse_chat(sent: Sequence[ChatMessage], now: datetime) -> ChatInput:
    """Return the new messages of a conversation and what came before them.

    Raises:
        ValidationFailedError: The last message is the assistant's, or a call has no result.
    """
    reading = _Reading(now)
    last = max((n for n, one in enumerate(sent) if isinstance(one, ChatAssistant)), default=-1)
    for number, message in enumerate(sent):
        reading.take(number, message, is_new=number > last)
    if not reading.new:
        text = "Add a message of the user, or the results of the assistant's calls, at the end."
        raise _wrong(len(sent) - 1, "role", text, "nothing_new")
    reading.check_answered(len(sent) - 1)
    return ChatInput(reading.instructions(), tuple(reading.earlier), tuple(reading.new))


class _Reading:
    """The state of reading a conversation from its beginning."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._instructions: list[str] = []
        self._calls: dict[str, str] = {}
        """The names of the tools in the last message of the assistant, by the ids of the calls."""
        self._open: dict[str, str] = {}
        """Those that have no result yet."""
        self.earlier: list[Message] = []
        self.new: list[Message] = []

    def instructions(self) -> str | None:
        text = "\n\n".join(self._instructions)
        if len(text) > MAX_SYSTEM_CHARS:
            message = f"Its system messages may have at most {MAX_SYSTEM_CHARS} characters."
            raise invalid([Fault(["body", "messages"], message, "too_long")])
        return text or None

    def take(self, number: int, sent: ChatMessage, *, is_new: bool) -> None:
        """Add a message. Raises ValidationFailedError."""
        if isinstance(sent, ChatInstructions):
            self._instructions += [text] if (text := _text(sent.content)) else ()
            return
        to = self.new if is_new else self.earlier
        if isinstance(sent, ChatReturn):
            self._take_return(number, sent, to, is_new=is_new)
            return
        self.check_answered(number)
        self._calls = {}
        if isinstance(sent, ChatUser):
            to.append(self._message(Role.USER, _parts(sent), sent.name))
        elif parts := self._begin_calls(number, sent):
            message = self._message(Role.ASSISTANT, parts)
            # Lists show an answer with calls as the output of a step.
            step_id = new_step_id() if self._calls else None
            to.append(replace(message, step_id=step_id))

    def _begin_calls(self, number: int, sent: ChatAssistant) -> list[ContentPart]:
        text = _text(sent.content or "")
        parts: list[ContentPart] = [TextPart(text)] if text else []
        for call in sent.tool_calls or ():
            if call.id in self._calls:
                raise _wrong(number, "tool_calls", f"Two calls have the id '{call.id[:100]}'.")
            name, arguments = call.function.name, call.function.arguments
            self._calls[call.id] = name
            parts.append(ToolCallPart(call.id, name, arguments, needs_approval=True))
        self._open = dict(self._calls)
        return parts

    def _take_return(
        self, number: int, sent: ChatReturn, to: list[Message], *, is_new: bool
    ) -> None:
        call_id = sent.tool_call_id
        # A client whose conversation is kept under a key may send the new messages alone.
        is_alone = is_new and not self.earlier
        if self._open.pop(call_id, None) is None and not is_alone:
            text = f"No call with the id '{call_id[:100]}' waits for a result."
            raise _wrong(number, "tool_call_id", text)
        role = Role.APPROVAL if is_new else Role.TOOL
        part = ToolReturnPart(call_id, self._calls.get(call_id, ""), "success", _text(sent.content))
        if to and to[-1].role is Role.USER:
            raise _wrong(number, "role", "The result of a call must precede the user's messages.")
        if to and to[-1].role is role:
            before = to.pop()
            to.append(self._message(role, [*before.parts, part]))
        else:
            to.append(self._message(role, [part]))

    def check_answered(self, number: int) -> None:
        """Raises ValidationFailedError if a call has no result before message ``number``."""
        if self._open:
            call_id, name = next(iter(self._open.items()))
            text = (
                f"The call '{call_id[:100]}' of '{name}' has no result. Add a message with the "
                "role 'tool' for each call, right after the assistant's message."
            )
            raise _wrong(number, "role", text, "call_without_result")

    def _message(
        self, role: Role, parts: Sequence[ContentPart], name: str | None = None
    ) -> Message:
        return Message(
            id=new_message_id(), role=role, parts=tuple(parts), created_at=self._now, name=name
        )


def _text(content: str | TextParts) -> str:
    if isinstance(content, str):
        return content
    return "".join(one.text if isinstance(one, ChatText) else one.refusal for one in content)


def _parts(sent: ChatUser) -> list[ContentPart]:
    if isinstance(sent.content, str):
        return [TextPart(sent.content)]
    parts: list[ContentPart] = []
    for one in sent.content:
        if isinstance(one, ChatImage):
            image = one.image_url
            parts.append(image_of(ImageSource(type="url", url=image.url, detail=image.detail)))
        else:
            parts.append(TextPart(one.text if isinstance(one, ChatText) else one.refusal))
    return parts


def _wrong(number: int, member: str, message: str, kind: str = "order") -> Exception:
    return invalid([Fault(["body", "messages", number, member], message, kind)])
