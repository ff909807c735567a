"""The event stream of AG-UI.

Every part of an answer is a message of its own. Its id is that of our message with the index of the
part, as in ``ag_ui_messages``, so a conversation that is loaded has the same messages as one that
was streamed. Members without a value are left out, because clients refuse null.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from reattach.domain.events import (
    CompactionBegan,
    Event,
    Failed,
    Output,
    Place,
    RunStatus,
    Stopped,
    StopReason,
    Usage,
)
from reattach.domain.messages import (
    HiddenReasoningPart,
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
    awaits_approval,
)
from reattach.wire.dialects.ag_ui_messages import (
    Json,
    calls_id,
    interrupt,
    part_id,
    result_id,
    span_id,
)
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.sse import data_frame
from reattach.wire.template import EMPTY_TEXT, around

_encode = msgspec.json.Encoder().encode

THREAD: Final = "threadId"
RUN: Final = "runId"
PARENT: Final = "parentRunId"
PROTOCOL: Final = "protocolVersion"
"""The members of a request that its events repeat, in ``RunFacts.given``."""

DENIED: Final = "deniedCalls"
"""The member of ``RunFacts.given`` with the results of the calls that the request denies, by their
ids. The log has no event for them."""

PROTOCOL_VERSION: Final = "1.0"
_DELTA: Final = b'"delta":'
_COMPACTION: Final = "reattach.compaction"
_UNKNOWN: Final = Failed("internal_error", "The answer failed.", None)
_CUT_SHORT: Final = frozenset({StopReason.CANCELLED, StopReason.MAX_TOKENS})
_COMPLETE: Final = frozenset({StopReason.NO_TOOL_CALL})
"""Reasons that end an answer properly although the status of their runs is not ``completed``."""

_FOLD_BYTES: Final = 1_000
_CALL_BYTES: Final = 300


class AgUi:
    """AG-UI 1.0, and the versions before it where they differ."""

    name = "ag_ui"
    headers: Sequence[tuple[bytes, bytes]] = ()
    last_frame = b""
    cursor_name = "cursor"
    first_cursor = 0

    def fold(self, facts: RunFacts) -> "AgUiFold":
        return AgUiFold(facts)


def event_frame(kind: str, members: Mapping[str, Any]) -> bytes:
    return data_frame(_encode({"type": kind, **members}))


def names_of(facts: RunFacts) -> Json:
    """Return the names of the thread and the run; those of the server if a client gave none."""
    given = facts.given
    thread = given.get(THREAD) or facts.conversation_id or facts.agent_id
    return {THREAD: thread, RUN: given.get(RUN) or facts.run_id}


def started(facts: RunFacts, names: Mapping[str, Any] | None = None) -> bytes:
    """Return the first frame of a run, under the names that a request gives it."""
    members: Json = {**(names or names_of(facts))}
    if parent := facts.given.get(PARENT):
        members[PARENT] = parent
    if facts.given.get(PROTOCOL):
        members[PROTOCOL] = PROTOCOL_VERSION
    members["metadata"] = {"reattach": {"run_id": facts.run_id}}
    return event_frame("RUN_STARTED", members)


def snapshot(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the frame that gives a client exactly these messages."""
    return event_frame("MESSAGES_SNAPSHOT", {"messages": messages})


def finished(names: Mapping[str, Any], interrupts: Sequence[Json] = (), **members: Any) -> bytes:
    """Return the last frame of a run that did not fail. With interrupts it waits for answers."""
    outcome: Json = {"type": "success"}
    if interrupts:
        outcome = {"type": "interrupt", "interrupts": interrupts}
    return event_frame("RUN_FINISHED", {**names, "outcome": outcome, **members})


def idle(names: Mapping[str, Any], messages: Sequence[Json], interrupts: Sequence[Json]) -> bytes:
    """Return all frames of a thread in which nothing is going on."""
    return b"".join(
        (event_frame("RUN_STARTED", names), snapshot(messages), finished(names, interrupts))
    )


@dataclass(slots=True)
class _Text:
    """The text or the reasoning that is being produced."""

    place: tuple[str, int]
    is_reasoning: bool
    id: str
    signature: str = ""
    around: Sequence[bytes] = ()
    """The bytes around the text of the frames of its pieces, once there are two."""

    def delta(self, piece: str) -> bytes:
        """Return the frame of a piece."""
        kind = "REASONING_MESSAGE_CONTENT" if self.is_reasoning else "TEXT_MESSAGE_CONTENT"
        return event_frame(kind, {"messageId": self.id, "delta": piece})


@dataclass(slots=True)
class _Call:
    id: str
    parent: str
    name: str
    waits: bool
    has_begun: bool = False
    is_whole: bool = False
    around: Sequence[bytes] = ()
    """The bytes around the text of the frames of its pieces, once there are two."""

    def delta(self, piece: str) -> bytes:
        """Return the frame of a piece."""
        return event_frame("TOOL_CALL_ARGS", {"toolCallId": self.id, "delta": piece})

    def interrupts(self, facts: RunFacts) -> bool:
        return self.waits and self.name not in facts.client_tools


class AgUiFold:
    """The state of a run's event stream."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._step: str | None = None
        self._text: _Text | None = None
        self._calls: dict[str, _Call] = {}
        self._newest_call: _Call | None = None
        """The call of the newest event, if that is a piece of one."""
        self._stopped: StopReason = StopReason.ERROR
        self._failed: Failed | None = None

    @property
    def size_bytes(self) -> int:
        return _FOLD_BYTES + _CALL_BYTES * len(self._calls)

    def begin(self) -> list[bytes]:
        denied = self._facts.given.get(DENIED) or {}
        return [started(self._facts), *(_result(call, text) for call, text in denied.items())]

    def add(self, event: Event) -> list[bytes]:
        match event:
            case Output(place, parts):
                frames = list(self._begin_step(place.step_id))
                for part in parts:
                    frames.extend(self._output(place, part))
                return frames
            case CompactionBegan():
                value = {"status": "began", "trigger": event.trigger}
                return [event_frame("CUSTOM", {"name": _COMPACTION, "value": value})]
            case Stopped(reason):
                self._stopped = reason
            case Failed():
                self._failed = event
            case Usage():
                return list(self._end(event))
            case _:
                pass
        return []

    def add_piece(self, text: bytes) -> bytes:
        part = self._text or self._newest_call
        assert part is not None, "The newest event is a piece of a text or of a call."
        if text == EMPTY_TEXT:
            return b""
        if not part.around:
            part.around = around(part.delta(""), (_DELTA, EMPTY_TEXT))
        before, after = part.around
        return b"%b%b%b" % (before, text, after)

    def _begin_step(self, step_id: str) -> Iterator[bytes]:
        if step_id == self._step:
            return
        yield from self._end_step()
        self._step = step_id
        yield event_frame("STEP_STARTED", {"stepName": step_id})

    def _end_step(self) -> Iterator[bytes]:
        yield from self._close()
        if self._step is not None:
            yield event_frame("STEP_FINISHED", {"stepName": self._step})
        self._step = None

    def _output(self, place: Place, part: object) -> Iterator[bytes]:
        match part:
            case TextPart(text):
                yield from self._begin_text(place, is_reasoning=False)
                yield from self._delta(text)
            case ReasoningPart(text, signature):
                yield from self._begin_text(place, is_reasoning=True)
                if self._text is not None and signature:
                    self._text.signature += signature
                yield from self._delta(text)
            case HiddenReasoningPart(text=text):
                if not text:
                    return
                yield from self._begin_text(place, is_reasoning=True)
                if self._text is not None:
                    self._text.signature = text
                yield from self._close_text()
            case ToolCallPart() | ToolCallDelta():
                yield from self._close_text()
                yield from self._call(place, part)
            case ToolReturnPart():
                yield from self._close()
                yield self._returned(part)
            case SummaryPart():
                value: Json = {"status": "done"}
                if part.stats is not None:
                    stats = msgspec.to_builtins(part.stats)
                    value |= {name: one for name, one in stats.items() if one is not None}
                yield event_frame("CUSTOM", {"name": _COMPACTION, "value": value})
            case _:
                pass

    def _close(self) -> Iterator[bytes]:
        yield from self._close_text()
        yield from self._close_calls()

    # Texts.

    def _begin_text(self, place: Place, *, is_reasoning: bool) -> Iterator[bytes]:
        key, text = (place.message_id, place.index), self._text
        if text is not None and text.place == key and text.is_reasoning is is_reasoning:
            return
        yield from self._close()
        message_id = part_id(place.message_id, place.index)
        self._text = _Text(key, is_reasoning, message_id)
        named = {"messageId": message_id}
        if is_reasoning:
            yield event_frame("REASONING_START", {"messageId": span_id(message_id)})
            yield event_frame("REASONING_MESSAGE_START", {**named, "role": "reasoning"})
        else:
            yield event_frame("TEXT_MESSAGE_START", {**named, "role": "assistant"})

    def _delta(self, piece: str) -> Iterator[bytes]:
        text = self._text
        if text is None or not piece:  # Clients before 1.0 refuse empty pieces.
            return
        yield text.delta(piece)

    def _close_text(self) -> Iterator[bytes]:
        text, self._text = self._text, None
        if text is None:
            return
        if not text.is_reasoning:
            yield event_frame("TEXT_MESSAGE_END", {"messageId": text.id})
            return
        yield event_frame("REASONING_MESSAGE_END", {"messageId": text.id})
        if text.signature:
            value = {"subtype": "message", "entityId": text.id, "encryptedValue": text.signature}
            yield event_frame("REASONING_ENCRYPTED_VALUE", value)
        yield event_frame("REASONING_END", {"messageId": span_id(text.id)})

    # Calls.

    def _call(self, place: Place, part: ToolCallPart | ToolCallDelta) -> Iterator[bytes]:
        call = self._calls.get(part.tool_call_id)
        if call is None:
            parent = calls_id(place.message_id)
            call = _Call(part.tool_call_id, parent, part.name or "", awaits_approval(part))
            self._calls[call.id] = call
        elif not call.has_begun:
            call.name += part.name or ""
        self._newest_call = call
        if part.arguments:  # Only then the name is whole.
            yield from self._begin_call(call)
            yield call.delta(part.arguments)

    def _begin_call(self, call: _Call) -> Iterator[bytes]:
        if call.has_begun:
            return
        call.has_begun = True
        members = {"toolCallId": call.id, "toolCallName": call.name}
        yield event_frame("TOOL_CALL_START", {**members, "parentMessageId": call.parent})

    def _close_calls(self) -> Iterator[bytes]:
        for call in self._calls.values():
            if not call.is_whole:
                call.is_whole = True
                yield from self._begin_call(call)
                yield event_frame("TOOL_CALL_END", {"toolCallId": call.id})

    def _returned(self, part: ToolReturnPart) -> bytes:
        self._calls.pop(part.tool_call_id, None)  # An earlier run has it if it was approved.
        return _result(part.tool_call_id, part.output)

    # The end.

    def _end(self, usage: Usage) -> Iterator[bytes]:
        yield from self._end_step()
        has_versions = bool(self._facts.given.get(PROTOCOL))
        members: Json = {"usage": [_usage(usage, self._facts.model)]} if has_versions else {}
        failed = self._failure()
        if failed is not None:
            error = {"message": failed.message, "code": failed.error_type}
            yield event_frame("RUN_ERROR", error | members)
            return
        members["result"] = {"stop_reason": self._stopped.value}
        names = names_of(self._facts)
        if self._stopped is StopReason.CANCELLED and has_versions:
            yield finished(names, **members, outcome={"type": "cancelled"})
            return
        waiting: list[Json] = []
        if self._stopped is StopReason.REQUIRES_APPROVAL:
            calls = self._calls.values()
            waiting = [
                interrupt(call.id, call.name) for call in calls if call.interrupts(self._facts)
            ]
        yield finished(names, waiting, **members)

    def _failure(self) -> Failed | None:
        """Return the failure that the stream reports; None unless the run failed."""
        if self._stopped in _CUT_SHORT:
            return None
        status = self._stopped.run_status
        is_failed = status is RunStatus.FAILED and self._stopped not in _COMPLETE
        return self._failed or (_UNKNOWN if is_failed else None)


def _result(call_id: str, text: str) -> bytes:
    members = {"messageId": result_id(call_id), "toolCallId": call_id}
    return event_frame("TOOL_CALL_RESULT", {**members, "content": text, "role": "tool"})


def _usage(usage: Usage, model: str | None) -> Json:
    figures = {
        "model": model,
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.total_tokens,
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cached_input_tokens,
        "cacheWriteInputTokens": usage.cache_write_tokens,
    }
    return {name: one for name, one in figures.items() if one is not None}
