"""The stream of Chat Completions, and the object that it adds up to.

Only text, reasoning and the calls of the client's own tools can be expressed. Calls of tools that
the server runs are left out, because clients run every call that they see.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from reattach.domain.events import Event, Failed, Output, Stopped, StopReason, Usage
from reattach.domain.messages import (
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    awaits_approval,
)
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.sse import DONE, data_frame

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode

FINISH_REASONS: Final = {
    StopReason.MAX_TOKENS: "length",
}
"""The reasons that are not ``stop``, or ``tool_calls`` when a tool of the client is called."""

SEPARATOR: Final = "\n\n"
"""Between two texts of one answer."""


class ChatCompletions:
    """Chat Completions of OpenAI's API. ``includes_usage`` adds the chunk with the usage."""

    name = "chat_completions"
    headers: Sequence[tuple[bytes, bytes]] = ()
    last_frame = DONE

    def __init__(self, *, includes_usage: bool = False) -> None:
        self._includes_usage = includes_usage
        if includes_usage:
            self.name = "chat_completions_with_usage"

    def fold(self, facts: RunFacts) -> "ChatFold":
        return ChatFold(facts, includes_usage=self._includes_usage)


class ChatFold:
    """The state of a stream of chunks, and what they add up to."""

    def __init__(self, facts: RunFacts, *, includes_usage: bool = False) -> None:
        self._facts = facts
        self._includes_usage = includes_usage
        self._head = chunk_head(facts)
        self._text_place: tuple[str, int] | None = None
        self._calls: dict[str, int] = {}
        """The ids of the calls of the client's tools, with their indexes."""
        self._waits_for: list[str] = []
        """The tools of the server whose calls wait for an approval."""
        self._stopped: StopReason | None = None
        self._failed: Failed | None = None
        self.size_bytes = 0

    def begin(self) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def add(self, event: Event) -> list[bytes]:
        match event:
            case Output(place, parts):
                return [
                    self._chunk(delta)
                    for part in parts
                    for delta in self._deltas((place.message_id, place.index), part)
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

    def _deltas(self, place: tuple[str, int], part: object) -> list[Json]:
        match part:
            case TextPart(text):
                is_next = self._text_place not in (None, place)
                self._text_place = place
                return [{"content": SEPARATOR + text if is_next else text}]
            case ReasoningPart(text):
                return [{"reasoning_content": text}] if text else []
            case ToolCallPart() | ToolCallDelta() if awaits_approval(part):
                return self._call(part)
        return []

    def _call(self, call: ToolCallPart | ToolCallDelta) -> list[Json]:
        is_new = call.tool_call_id not in self._calls
        if is_new and call.name not in self._facts.client_tools:
            if call.name:
                self._waits_for.append(call.name)
            return []
        index = self._calls.setdefault(call.tool_call_id, len(self._calls))
        function = {"arguments": call.arguments or ""}
        if not is_new:
            return [{"tool_calls": [{"index": index, "function": function}]}]
        named = {"name": call.name, **function}
        one = {"index": index, "id": call.tool_call_id, "type": "function", "function": named}
        return [{"tool_calls": [one]}]

    def _end(self, usage: Usage) -> list[bytes]:
        if self._failed is not None and self._stopped is not StopReason.CANCELLED:
            return [data_frame(_encode({"error": error_of(self._failed)}))]
        frames = []
        if self._waits_for:
            text = waiting_text(self._waits_for)
            frames.append(self._chunk({"content": SEPARATOR + text if self._text_place else text}))
        frames.append(self._chunk({}, finish_reason(self._stopped, has_calls=bool(self._calls))))
        if self._includes_usage:
            last = {**self._head, "choices": [], "usage": usage_of(usage)}
            frames.append(data_frame(_encode(last)))
        return frames

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return data_frame(_encode({**self._head, "choices": [choice]}))


def completion_id(run_id: str) -> str:
    """Return the id of a run's completion."""
    return "chatcmpl-" + run_id.removeprefix("run-").replace("-", "")


def chunk_head(facts: RunFacts) -> Json:
    return {
        "id": completion_id(facts.run_id),
        "object": "chat.completion.chunk",
        "created": int(facts.created_at.timestamp()),
        "model": facts.given.get("model") or facts.agent_id,
    }


def finish_reason(stopped: StopReason | None, *, has_calls: bool) -> str:
    if has_calls and stopped is StopReason.REQUIRES_APPROVAL:
        return "tool_calls"
    return FINISH_REASONS.get(stopped, "stop") if stopped is not None else "stop"


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
