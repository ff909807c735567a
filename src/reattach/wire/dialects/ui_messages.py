"""The UI message stream of the AI SDK, in the chunks that its versions 5, 6 and 7 understand.

One message of the client is one turn of the agent, which may consist of several runs: a run that
answers an approval, or returns the result of a client's tool, continues the message of the run that
asked. Its own frames are what the client that answered lacks. A client that has nothing gets those
of all runs of the turn as one stream.
"""

from collections.abc import Iterator, Sequence
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
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
    part_chars,
)
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.sse import DONE, data_frame
from reattach.wire.template import EMPTY_TEXT, around, decode_text

Chunk = dict[str, Any]

_encode = msgspec.json.Encoder().encode

HEADERS: Final = ((b"x-vercel-ai-ui-message-stream", b"v1"),)

COMPACTION: Final = "data-reattach-compaction"
"""The type of the part that says that older messages are, or were, summarised."""

_DELTA: Final = b'"delta":'
_INPUT_DELTA: Final = b'"inputTextDelta":'
_UNFINISHED: Final = "The run ended before this tool returned."
_FAILED: Final = "The answer failed."

_FINISH_REASONS: Final = {
    StopReason.END_TURN: "stop",
    StopReason.TOOL_RULE: "stop",
    StopReason.NO_TOOL_CALL: "stop",
    StopReason.MAX_TOKENS: "length",
    StopReason.MAX_STEPS: "other",
    StopReason.REQUIRES_APPROVAL: "tool-calls",
    StopReason.CANCELLED: "other",
}
"""All others are ``error``."""


def message_id_of(run_id: str) -> str:
    """Return the id of the message that a run begins."""
    return f"msg-{run_id.removeprefix('run-')}"


class UiMessages:
    """The stream of one run, or with ``before`` of all runs of its turn.

    ``first_run_id`` is the run that began the message; None if this one did. ``denied`` are the
    calls that its sender has denied. ``before`` are the frames of the earlier runs of the turn,
    from ``start`` on.
    """

    headers: Sequence[tuple[bytes, bytes]] = HEADERS
    last_frame = DONE
    cursor_name = "startIndex"
    first_cursor = 0

    def __init__(
        self,
        *,
        first_run_id: str | None = None,
        denied: Sequence[str] = (),
        before: Sequence[bytes] = (),
    ) -> None:
        self.name = "ui_messages_of_turn" if before else "ui_messages"
        self._first_run_id = first_run_id
        self._denied = denied
        self._before = before

    def fold(self, facts: RunFacts) -> "UiMessageFold":
        return UiMessageFold(facts, self._first_run_id, self._denied, self._before)


class _Call:
    """A call without a return."""

    __slots__ = ("around", "id", "is_clients", "is_shown", "name", "pieces", "waits")

    def __init__(self, part: ToolCallPart | ToolCallDelta, *, is_clients: bool) -> None:
        self.id = part.tool_call_id
        self.name = ""
        self.waits = part.needs_approval
        self.is_clients = is_clients
        self.is_shown = False
        """Whether the client has its name."""
        self.pieces: list[str] = []
        self.around: Sequence[bytes] = ()
        """The bytes around the text of the frames of its pieces, once there are two."""

    @property
    def kind(self) -> Chunk:
        """The members that say who runs it. Clients run every call without them."""
        return {} if self.is_clients else {"dynamic": True, "providerExecuted": True}


class UiMessageFold:
    """The state of a message at one event of a run."""

    def __init__(
        self,
        facts: RunFacts,
        first_run_id: str | None = None,
        denied: Sequence[str] = (),
        before: Sequence[bytes] = (),
    ) -> None:
        self.size_bytes = 0
        self._facts = facts
        self._continues = first_run_id is not None
        self._message_id = message_id_of(first_run_id or facts.run_id)
        self._denied = denied
        self._before = before
        self.seq = 0
        """The number of events so far."""
        self._step_id: str | None = None
        self._text: tuple[str, str] | None = None
        """The kind and the id of the text or the reasoning that is being produced."""
        self._around: Sequence[bytes] = ()
        """The bytes around the text of the frames of its pieces, once there are two."""
        self._signature = ""
        self._calls: dict[str, _Call] = {}
        """The calls whose arguments are being produced."""
        self._newest_call: _Call | None = None
        """The call of the newest event, if that is a piece of one."""
        self._running: dict[str, _Call] = {}
        """The calls of the server's tools that have not returned."""
        self._in_step: set[str] = set()
        """Those of them that are in the newest step of the message."""
        self._called: set[str] = set()
        self._stopped: StopReason | None = None
        self._failed: Failed | None = None

    # Frames.

    def begin(self) -> list[bytes]:
        begun = [data_frame(_encode(chunk)) for chunk in self.begin_chunks()]
        return [*self._before, *begun[1:]] if self._before else begun

    def add(self, event: Event) -> list[bytes]:
        return [data_frame(_encode(chunk)) for chunk in self.chunks(event)]

    def add_piece(self, text: bytes) -> bytes:
        self.seq += 1
        if text == EMPTY_TEXT:
            return b""
        if self._text is None:
            return self._add_arguments(text)
        if not self._around:
            frame = chunk_frame(_text_delta(*self._text, ""))
            self._around = around(frame, (_DELTA, EMPTY_TEXT))
        before, after = self._around
        return b"%b%b%b" % (before, text, after)

    def _add_arguments(self, text: bytes) -> bytes:
        call, piece = self._newest_call, decode_text(text)
        assert call is not None, "The newest event is a piece of a text or of a call."
        call.pieces.append(piece)
        self.size_bytes += len(call.id) + len(piece)
        if not call.is_shown:
            return b""
        if not call.around:
            frame = chunk_frame(_input_delta(call.id, ""))
            call.around = around(frame, (_INPUT_DELTA, EMPTY_TEXT))
        before, after = call.around
        return b"%b%b%b" % (before, text, after)

    # Chunks.

    def begin_chunks(self) -> list[Chunk]:
        """Return the chunks before the first event."""
        start = {
            "type": "start",
            "messageId": self._message_id,
            "messageMetadata": {"run_id": self._facts.run_id},
        }
        denied = [{"type": "tool-output-denied", "toolCallId": one} for one in self._denied]
        return [start, *denied]

    def chunks(self, event: Event) -> list[Chunk]:
        """Return the chunks that the event adds."""
        self.seq += 1
        match event:
            case Output(place, parts):
                return [chunk for part in parts for chunk in self._output(place, part)]
            case CompactionBegan(step_id=step_id):
                return [_compaction(step_id, "running")]
            case Stopped(reason):
                self._stopped = reason
            case Failed():
                self._failed = event
            case Usage():
                return list(self._end(event))
            case _:
                pass
        return []

    def _output(self, place: Place, part: object) -> Iterator[Chunk]:
        match part:
            case TextPart(text):
                yield from self._text_piece(place, "text", text)
            case ReasoningPart(text, signature):
                yield from self._text_piece(place, "reasoning", text)
                self._signature += signature or ""
            case ToolCallPart() | ToolCallDelta():
                yield from self._close_text()
                yield from self._call(place, part)
            case ToolReturnPart():
                yield from self._close()
                yield from self._returned(place, part)
            case SummaryPart():
                yield from self._close()
                yield _compaction(place.step_id, "done")
            case _:
                return  # Hidden reasoning has nothing to show.

    def _step(self, place: Place) -> Iterator[Chunk]:
        """Begin a step at its first output."""
        if place.step_id == self._step_id:
            return
        yield from self._close()
        yield from self._new_step()
        self._step_id = place.step_id

    def _new_step(self) -> Iterator[Chunk]:
        self._in_step.clear()
        if self._step_id is not None:
            yield {"type": "finish-step"}
        yield {"type": "start-step"}

    def _step_for_waiting(self) -> Iterator[Chunk]:
        """Begin a step if the newest one has running calls.

        Clients continue by themselves once all calls of the newest step are settled, and those of
        the server return only after the answer.
        """
        if self._in_step:
            yield from self._new_step()

    def _text_piece(self, place: Place, kind: str, text: str) -> Iterator[Chunk]:
        part = (kind, f"{place.message_id}:{place.index}")
        if part != self._text:
            yield from self._close()
            yield from self._step(place)
            self._text, self._around = part, ()
            yield {"type": f"{kind}-start", "id": part[1]}
        if text:
            yield _text_delta(*part, text)

    def _close(self) -> Iterator[Chunk]:
        """Complete the text, and the arguments of all calls."""
        yield from self._close_text()
        yield from self._complete_calls()

    def _close_text(self) -> Iterator[Chunk]:
        text, self._text = self._text, None
        if text is None:
            return
        end: Chunk = {"type": f"{text[0]}-end", "id": text[1]}
        if self._signature:
            end["providerMetadata"] = {"reattach": {"signature": self._signature}}
            self._signature = ""
        yield end

    # Calls.

    def _call(self, place: Place, part: ToolCallPart | ToolCallDelta) -> Iterator[Chunk]:
        call = self._calls.get(part.tool_call_id)
        if call is None:
            yield from self._step(place)
            is_clients = part.needs_approval and part.name in self._facts.client_tools
            call = self._calls[part.tool_call_id] = _Call(part, is_clients=is_clients)
            if is_clients:
                yield from self._step_for_waiting()
        self._newest_call = call
        call.name = call.name or part.name or ""
        if part.arguments:
            call.pieces.append(part.arguments)
            self.size_bytes += part_chars(part)
        if call.waits and not call.is_clients:
            return  # People are asked about whole calls.
        if isinstance(part, ToolCallPart):
            yield from self._complete(self._calls.pop(call.id))
        elif not call.is_shown and call.name:
            call.is_shown = True
            yield {
                "type": "tool-input-start",
                "toolCallId": call.id,
                "toolName": call.name,
                **call.kind,
            }
            if call.pieces:
                yield _input_delta(call.id, "".join(call.pieces))
        elif call.is_shown and part.arguments:
            yield _input_delta(call.id, part.arguments)

    def _complete_calls(self) -> Iterator[Chunk]:
        calls, self._calls = self._calls, {}
        for call in sorted(calls.values(), key=lambda one: one.waits):
            if call.waits and not call.is_clients:
                yield from self._step_for_waiting()
            yield from self._complete(call)

    def _complete(self, call: _Call) -> Iterator[Chunk]:
        self._called.add(call.id)
        if not call.waits:
            self._running[call.id] = call
            self._in_step.add(call.id)
        arguments = "".join(call.pieces)
        self.size_bytes = max(self.size_bytes - len(arguments), 0)
        named = {"toolCallId": call.id, "toolName": call.name}
        try:
            given = msgspec.json.decode(arguments.encode(errors="replace") or b"{}")
        except (ValueError, RecursionError):
            yield {
                "type": "tool-input-error",
                **named,
                "input": arguments,
                "errorText": "The arguments of the call are not JSON.",
                **call.kind,
            }
            return
        yield {"type": "tool-input-available", **named, "input": given, **call.kind}
        if call.waits and not call.is_clients:
            yield {"type": "tool-approval-request", "approvalId": call.id, "toolCallId": call.id}

    def _returned(self, place: Place, part: ToolReturnPart) -> Iterator[Chunk]:
        call_id = part.tool_call_id
        self._running.pop(call_id, None)
        self._in_step.discard(call_id)
        if call_id not in self._called and not self._continues:
            # Clients accept no result of a call that their message lacks.
            yield from self._step(place)
            call = _Call(ToolCallPart(call_id, part.name, "{}"), is_clients=False)
            call.name = part.name
            yield from self._complete(call)
            del self._running[call_id]
            self._in_step.discard(call_id)
        yield returned_chunk(part, is_clients=False)

    # The end.

    def _end(self, usage: Usage) -> Iterator[Chunk]:
        reason = self._stopped or StopReason.ERROR
        yield from self._close()
        if reason is not StopReason.REQUIRES_APPROVAL:
            for call in self._running.values():
                part = ToolReturnPart(call.id, call.name, "error", _UNFINISHED)
                yield returned_chunk(part, is_clients=False)
        if self._step_id is not None:
            yield {"type": "finish-step"}
        metadata = end_metadata(self._facts.run_id, reason, usage, self.seq)
        finish = {"type": "finish", "finishReason": finish_reason(reason)}
        if reason is StopReason.CANCELLED:
            yield {"type": "abort", "reason": "cancelled"}
        elif finish["finishReason"] == "error":
            # Clients read nothing after an error, except those that wait for a finish.
            yield {"type": "message-metadata", "messageMetadata": metadata}
            text = self._failed.message if self._failed is not None else _FAILED
            yield {"type": "error", "errorText": text}
        yield {**finish, "messageMetadata": metadata}


def finish_reason(reason: StopReason) -> str:
    if reason.run_status is RunStatus.CANCELLED:
        return "other"
    return _FINISH_REASONS.get(reason, "error")


def end_metadata(run_id: str, reason: StopReason, usage: Usage, seq: int) -> Chunk:
    """Return the metadata of a message at the end of a run. It always has the same members."""
    return {
        "run_id": run_id,
        "stop_reason": reason.value,
        "seq": seq,
        "usage": {
            "inputTokens": usage.prompt_tokens,
            "outputTokens": usage.completion_tokens,
            "totalTokens": usage.total_tokens,
            "cachedInputTokens": usage.cached_input_tokens or 0,
            "reasoningTokens": usage.reasoning_tokens or 0,
        },
    }


def returned_chunk(part: ToolReturnPart, *, is_clients: bool) -> Chunk:
    """Return the chunk of the result of a call."""
    kind = {} if is_clients else {"dynamic": True, "providerExecuted": True}
    if part.status == "error":
        return {
            "type": "tool-output-error",
            "toolCallId": part.tool_call_id,
            "errorText": part.output,
            **kind,
        }
    return {
        "type": "tool-output-available",
        "toolCallId": part.tool_call_id,
        "output": part.output,
        **kind,
    }


def chunk_frame(chunk: Chunk) -> bytes:
    """Return the frame of a chunk."""
    return data_frame(_encode(chunk))


def _text_delta(kind: str, part_id: str, text: str) -> Chunk:
    return {"type": f"{kind}-delta", "id": part_id, "delta": text}


def _input_delta(call_id: str, text: str) -> Chunk:
    return {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": text}


def _compaction(step_id: str, status: str) -> Chunk:
    return {"type": COMPACTION, "id": step_id, "data": {"status": status}}
