"""The stream of Chat Completions, and the object that it adds up to.

Only text, reasoning and the calls of the client's own tools can be expressed. Calls of tools that
the server runs are left out, because clients run every call that they see.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reattach.domain.events import Event, Failed, Output, Stopped, StopReason, Usage
from reattach.domain.messages import (
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    awaits_approval,
)
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.sse import DONE, data_frame
from reattach.wire.template import EMPTY_TEXT, around

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode

FINISH_REASONS: Final = {
    StopReason.MAX_TOKENS: "length",
}
"""The reasons that are not ``stop``, or ``tool_calls`` when a tool of the client is called."""

SEPARATOR: Final = "\n\n"
"""Between two texts of one answer."""

_CONTENT: Final = "content"
_REASONING: Final = "reasoning_content"
_ARGUMENTS: Final = "arguments"

_FOLD_BYTES: Final = 1_000
_CALL_BYTES: Final = 300
"""The approximate memory of a fold, and of one call in it."""


class ChatCompletions:
    """Chat Completions of OpenAI's API. ``includes_usage`` adds the chunk with the usage."""

    name = "chat_completions"
    headers: Sequence[tuple[bytes, bytes]] = ()
    last_frame = DONE
    cursor_name = "cursor"
    first_cursor = 0

    def __init__(self, *, includes_usage: bool = False) -> None:
        self._includes_usage = includes_usage
        if includes_usage:
            self.name = "chat_completions_with_usage"

    def fold(self, facts: RunFacts) -> "ChatFold":
        return ChatFold(facts, includes_usage=self._includes_usage)


class ChatFold:
    """The state of a stream of chunks."""

    def __init__(self, facts: RunFacts, *, includes_usage: bool = False) -> None:
        self._facts = facts
        self._includes_usage = includes_usage
        self._head = {**head_of(facts), "object": "chat.completion.chunk"}
        self._text_place: tuple[str, int] | None = None
        self._further: tuple[str, Json] | None = None
        """The member with the text, and the delta, of a further piece of the newest part that is
        empty; None: it would not be shown."""
        self._around: Sequence[bytes] = ()
        """The bytes around the text of the chunks of its pieces, once there are two."""
        self._calls: dict[str, int] = {}
        """The ids of the calls of the client's tools, with their indexes."""
        self._waits_for: dict[str, str] = {}
        """The tools of the server whose calls wait for an approval, by the ids of the calls."""
        self._stopped: StopReason | None = None
        self._failed: Failed | None = None

    @property
    def size_bytes(self) -> int:
        return _FOLD_BYTES + _CALL_BYTES * (len(self._calls) + len(self._waits_for))

    def begin(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def add(self, event: Event) -> list[bytes]:
        match event:
            case Output(place, parts):
                self._further, self._around = None, ()
                return [
                    self._chunk(delta)
                    for part in parts
                    for delta in self.deltas((place.message_id, place.index), part)
                ]
            case Stopped(reason):
                self._stopped = reason
            case Failed():
                self._failed = event
            case Usage():
                return self._end(event)
            case _:
                pass
        return []

    def add_piece(self, text: bytes) -> bytes:
        if self._further is None:
            return b""
        member, delta = self._further
        if member == _REASONING and text == EMPTY_TEXT:
            return b""
        if not self._around:
            name = b'"%b":' % member.encode()
            self._around = around(self._chunk(delta), (name, EMPTY_TEXT))
        before, after = self._around
        return b"%b%b%b" % (before, text, after)

    def deltas(self, place: tuple[str, int], part: object) -> list[Json]:
        """Return what a part, or a fragment of one, adds to the message."""
        match part:
            case TextPart(text):
                is_next = self._text_place not in (None, place)
                self._text_place, self._further = place, (_CONTENT, {_CONTENT: ""})
                return [{_CONTENT: SEPARATOR + text if is_next else text}]
            case ReasoningPart(text):
                self._further = _REASONING, {_REASONING: ""}
                return [{_REASONING: text}] if text else []
            case ToolCallPart() | ToolCallDelta() if awaits_approval(part):
                return self._call(part)
        return []

    def last_deltas(self) -> list[Json]:
        """Return what the end of the run adds to the message."""
        if not self._waits_for:
            return []
        text = waiting_text(list(dict.fromkeys(self._waits_for.values())))
        return [{"content": SEPARATOR + text if self._text_place else text}]

    def finish_reason(self, stopped: StopReason | None) -> str:
        """Return the reason why the message ends, in the words of this API."""
        if self._calls and stopped is StopReason.REQUIRES_APPROVAL:
            return "tool_calls"
        return FINISH_REASONS.get(stopped, "stop") if stopped is not None else "stop"

    def _call(self, call: ToolCallPart | ToolCallDelta) -> list[Json]:
        call_id, arguments = call.tool_call_id, call.arguments or ""
        index = self._calls.get(call_id)
        if index is not None:
            self._further = _ARGUMENTS, _arguments_delta(index, "")
            return [_arguments_delta(index, arguments)]
        if call.name not in self._facts.client_tools:
            if call.name:
                self._waits_for[call_id] = call.name
            return []
        index = self._calls[call_id] = len(self._calls)
        self._further = _ARGUMENTS, _arguments_delta(index, "")
        function = {"name": call.name, "arguments": arguments}
        begun = {"index": index, "id": call_id, "type": "function", "function": function}
        return [{"tool_calls": [begun]}]

    def _end(self, usage: Usage) -> list[bytes]:
        if self._failed is not None and self._stopped is not StopReason.CANCELLED:
            return [data_frame(_encode({"error": error_of(self._failed)}))]
        frames = [self._chunk(delta) for delta in self.last_deltas()]
        frames.append(self._chunk({}, self.finish_reason(self._stopped)))
        if self._includes_usage:
            last = {**self._head, "choices": [], "usage": usage_of(usage)}
            frames.append(data_frame(_encode(last)))
        return frames

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        chunk = {**self._head, "choices": [choice]}
        if self._includes_usage:
            chunk["usage"] = None
        return data_frame(_encode(chunk))


def _arguments_delta(index: int, piece: str) -> Json:
    return {"tool_calls": [{"index": index, "function": {_ARGUMENTS: piece}}]}


def completion(
    facts: RunFacts, output: Sequence[Message], stopped: StopReason | None, usage: Usage
) -> Json:
    """Return the object to which the stream of an ended run adds up.

    ``output`` are the messages that the run has added to its conversation.
    """
    fold = ChatFold(facts)
    deltas = [
        delta
        for message in output
        if message.role is Role.ASSISTANT
        for index, part in enumerate(message.parts)
        for delta in fold.deltas((message.id, index), part)
    ]
    deltas += fold.last_deltas()
    calls = [_whole_call(call) for delta in deltas for call in delta.get("tool_calls", ())]
    message: Json = {"role": "assistant", "content": _joined(deltas, "content"), "refusal": None}
    if reasoning := _joined(deltas, _REASONING):
        message[_REASONING] = reasoning
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": fold.finish_reason(stopped),
        "logprobs": None,
    }
    return {
        **head_of(facts),
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage_of(usage),
    }


def _joined(deltas: Sequence[Json], member: str) -> str:
    return "".join(delta.get(member, "") for delta in deltas)


def _whole_call(call: Json) -> Json:
    """Return a call of a stored message, which is whole, without its index."""
    return {name: value for name, value in call.items() if name != "index"}


def completion_id(run_id: str) -> str:
    """Return the id of a run's completion."""
    return "chatcmpl-" + run_id.removeprefix("run-").replace("-", "")


def head_of(facts: RunFacts) -> Json:
    """Return the members that all chunks of a run have, and the whole object too."""
    return {
        "id": completion_id(facts.run_id),
        "created": int(facts.created_at.timestamp()),
        "model": facts.given.get("model") or facts.agent_id,
    }


def error_of(failed: Failed) -> Json:
    return {
        "message": failed.message,
        "type": "server_error",
        "param": None,
        "code": failed.error_type,
    }


def usage_of(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
    }


def waiting_text(tools: Sequence[str]) -> str:
    """Return a text for calls that this dialect cannot ask about."""
    names = ", ".join(f"`{name}`" for name in tools)
    return f"(Waiting for an approval of {names}, which has to be given through another API.)"
