"""The stream of OpenAI's Responses API.

Each frame has a ``sequence_number``, which is its position in the list of the run's frames, from 0.
Tools that the server runs are ``mcp_call`` items of the server ``reattach``, because clients run
every ``function_call`` themselves. A request may ask for a pair of ``function_call`` and
``function_call_output`` instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from reattach.domain.events import Event, Failed, Output, Place, RunStatus, Stopped, Usage
from reattach.domain.events import StopReason as Reason
from reattach.domain.messages import (
    HiddenReasoningPart,
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
    awaits_approval,
    part_chars,
)
from reattach.wire.dialects.dialect import RunFacts
from reattach.wire.dialects.openai_items import (
    EARLIER_CALLS,
    SERVER_TOOLS,
    Json,
    approval_request_item,
    function_call_item,
    function_output_item,
    mcp_call_item,
    message_item,
    part_id,
    reasoning_item,
    response_object,
    text_part,
)
from reattach.wire.template import EMPTY_TEXT, around, decode_text

_encode = msgspec.json.Encoder().encode

_NUMBER: Final = b'"sequence_number":'
_DELTA: Final = b'"delta":'

_UNKNOWN: Final = Failed("internal_error", "The answer failed.", None)
_CUT_SHORT: Final = frozenset({Reason.CANCELLED, Reason.MAX_TOKENS})
_COMPLETE: Final = frozenset({Reason.NO_TOOL_CALL})
"""Reasons that end an answer properly although the status of their runs is not ``completed``."""


class Responses:
    """Responses of OpenAI's API."""

    name = "responses"
    headers: Sequence[tuple[bytes, bytes]] = ()
    last_frame = b""
    cursor_name = "starting_after"
    first_cursor = -1

    def fold(self, facts: RunFacts) -> "ResponseFold":
        return ResponseFold(facts)


@dataclass(slots=True)
class _Text:
    """The text or the reasoning that is being produced."""

    place: tuple[str, int]
    output_index: int
    id: str
    is_reasoning: bool
    pieces: list[str] = field(default_factory=list)
    signature: str | None = None
    around: Sequence[bytes] = ()
    """The bytes around the number and the text of the frames of its pieces, once there are two."""

    @property
    def position(self) -> Json:
        return {"item_id": self.id, "output_index": self.output_index, "content_index": 0}

    def part(self, text: str) -> Json:
        return {"type": "reasoning_text", "text": text} if self.is_reasoning else text_part(text)

    def delta(self, piece: str) -> tuple[str, Json]:
        """Return the kind and the members of the frame of a piece."""
        members = {**self.position, "delta": piece}
        if self.is_reasoning:
            return "reasoning_text.delta", members
        return "output_text.delta", {**members, "logprobs": []}

    def item(self, status: str) -> Json:
        text = "".join(self.pieces)
        if self.is_reasoning:
            return reasoning_item(self.id, text, self.signature, status)
        return message_item(self.id, text, status)


CallKind = Literal["function", "mcp", "request"]


@dataclass(slots=True)
class _Call:
    """A call that has not returned, or whose arguments are being produced."""

    kind: CallKind
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)
    output_index: int = -1
    """-1: its item has not begun, because requests have no pieces."""
    is_whole: bool = False
    """Whether all its arguments came."""
    around: Sequence[bytes] = ()
    """The bytes around the number and the text of the frames of its pieces, once there are two."""

    def item(self, status: str, returned: ToolReturnPart | None = None) -> Json:
        arguments = "".join(self.pieces)
        match self.kind:
            case "function":
                return function_call_item(self.id, self.name, arguments, status)
            case "mcp":
                return mcp_call_item(self.id, self.name, arguments, status, returned)
            case "request":
                return approval_request_item(self.id, self.name, arguments)

    @property
    def position(self) -> Json:
        prefix = "fc_" if self.kind == "function" else "mcp_"
        return {"item_id": prefix + self.id, "output_index": self.output_index}

    @property
    def events(self) -> str:
        """The beginning of the names of the events about its arguments."""
        return f"{'function_call' if self.kind == 'function' else 'mcp_call'}_arguments"

    def delta(self, piece: str) -> tuple[str, Json]:
        """Return the kind and the members of the frame of a piece."""
        return f"{self.events}.delta", {**self.position, "delta": piece}


class ResponseFold:
    """The state of a response at one event of its run."""

    def __init__(self, facts: RunFacts) -> None:
        self.size_bytes = 0
        self._facts = facts
        self._pairs = facts.given.get(SERVER_TOOLS) == "function_call"
        self._number = 0
        self._items: list[Json] = []
        """The items by their index; an open one as it was at its beginning."""
        self._text: _Text | None = None
        self._calls: dict[str, _Call] = {}
        self._newest_call: _Call | None = None
        """The call of the newest event, if that is a piece of one."""
        self._newest_at: datetime | None = None
        self._stopped: Stopped | None = None
        self._failed: Failed | None = None
        self._ended: Json | None = None

    # The whole response.

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    def response(self) -> Json:
        """Return the response as far as it has got."""
        if self._ended is not None:
            return self._ended
        output = list(self._items)
        if self._text is not None:
            output[self._text.output_index] = self._text.item("in_progress")
        for call in self._calls.values():
            if call.output_index >= 0:
                output[call.output_index] = call.item("in_progress")
        status = "in_progress" if self._newest_at is not None else "queued"
        return response_object(self._facts, status, output)

    # The stream.

    def begin(self) -> list[bytes]:
        is_queued = self._facts.given.get("background", self._facts.background)
        created = response_object(self._facts, "queued" if is_queued else "in_progress", [])
        begun = response_object(self._facts, "in_progress", [])
        return [
            self._frame("created", {"response": created}),
            self._frame("in_progress", {"response": begun}),
        ]

    def add(self, event: Event) -> list[bytes]:
        match event:
            case Output(place, parts):
                self._newest_at = place.at
                return [frame for part in parts for frame in self._output(place, part)]
            case Stopped():
                self._stopped = event
            case Failed():
                self._failed = event
            case Usage():
                return list(self._end(event))
            case _:
                pass
        return []

    def add_piece(self, text: bytes) -> bytes:
        piece = decode_text(text)
        part: _Text | _Call | None = self._text
        if part is None:
            part = self._newest_call
            assert part is not None, "The newest event is a piece of a text or of a call."
            self.size_bytes += len(part.id)
        if not piece:
            return b""
        self.size_bytes += len(piece)
        part.pieces.append(piece)
        if isinstance(part, _Call) and part.kind == "request":
            return b""
        if not part.around:
            frame = _frame_of(0, *part.delta(""))
            part.around = around(frame, (_NUMBER, b"0"), (_DELTA, EMPTY_TEXT))
        number = self._number
        self._number += 1
        before_number, before_text, after_text = part.around
        return b"%b%d%b%b%b" % (before_number, number, before_text, text, after_text)

    def _frame(self, kind: str, members: Json) -> bytes:
        number = self._number
        self._number += 1
        return _frame_of(number, kind, members)

    def _output(self, place: Place, part: object) -> Iterator[bytes]:
        self.size_bytes += part_chars(part)
        match part:
            case TextPart(text):
                yield from self._begin_text(place, is_reasoning=False)
                if text:
                    yield self._text_delta(text)
            case ReasoningPart(text, signature):
                yield from self._begin_text(place, is_reasoning=True)
                if signature and self._text is not None:
                    self._text.signature = (self._text.signature or "") + signature
                if text:
                    yield self._text_delta(text)
            case HiddenReasoningPart():
                yield from self._close("completed")
                item_id = part_id("rs", place.message_id, place.index)
                yield from self._whole(reasoning_item(item_id, None, part.text))
            case ToolCallPart() | ToolCallDelta():
                yield from self._close_text("completed")
                yield from self._call(part)
            case ToolReturnPart():
                yield from self._close("completed")
                yield from self._returned(part)
            case _:
                return  # Summaries are about the context, not a part of the answer.

    # Items.

    def _begin(self, item: Json) -> Iterator[bytes]:
        """Begin the next item; its index is then that of the last one."""
        self._items.append(item)
        index = len(self._items) - 1
        yield self._frame("output_item.added", {"output_index": index, "item": item})

    def _finish(self, index: int, item: Json) -> bytes:
        self._items[index] = item
        return self._frame("output_item.done", {"output_index": index, "item": item})

    def _whole(self, item: Json) -> Iterator[bytes]:
        yield from self._begin(item)
        yield self._finish(len(self._items) - 1, item)

    def _close(self, status: str) -> Iterator[bytes]:
        """Complete the text, and the arguments of all calls."""
        yield from self._close_text(status)
        yield from self._close_calls(status)

    # Texts.

    def _begin_text(self, place: Place, *, is_reasoning: bool) -> Iterator[bytes]:
        key = (place.message_id, place.index)
        text = self._text
        if text is not None and text.place == key and text.is_reasoning is is_reasoning:
            return
        yield from self._close("completed")
        item_id = part_id("rs" if is_reasoning else "msg", place.message_id, place.index)
        index = len(self._items)
        text = self._text = _Text(key, index, item_id, is_reasoning)
        if is_reasoning:
            yield from self._begin(reasoning_item(item_id, None, None, "in_progress"))
        else:
            yield from self._begin(message_item(item_id, None, "in_progress"))
        yield self._frame("content_part.added", {**text.position, "part": text.part("")})

    def _text_delta(self, piece: str) -> bytes:
        text = self._text
        assert text is not None
        text.pieces.append(piece)
        return self._frame(*text.delta(piece))

    def _close_text(self, status: str) -> Iterator[bytes]:
        text, self._text = self._text, None
        if text is None:
            return
        whole = "".join(text.pieces)
        if text.is_reasoning:
            yield self._frame("reasoning_text.done", {**text.position, "text": whole})
        else:
            members = {**text.position, "text": whole, "logprobs": []}
            yield self._frame("output_text.done", members)
        yield self._frame("content_part.done", {**text.position, "part": text.part(whole)})
        yield self._finish(text.output_index, text.item(status))

    # Calls.

    def _call(self, part: ToolCallPart | ToolCallDelta) -> Iterator[bytes]:
        call = self._calls.get(part.tool_call_id)
        if call is None:
            call = _Call(self._kind_of(part), part.tool_call_id, part.name or "")
            self._calls[call.id] = call
            if call.kind != "request":
                call.output_index = len(self._items)
                yield from self._begin(call.item("in_progress"))
            if call.kind == "mcp":
                yield self._frame("mcp_call.in_progress", call.position)
        self._newest_call = call
        if not part.arguments:
            return
        call.pieces.append(part.arguments)
        if call.kind != "request":
            yield self._frame(*call.delta(part.arguments))

    def _kind_of(self, part: ToolCallPart | ToolCallDelta) -> CallKind:
        if not awaits_approval(part):
            return "function" if self._pairs else "mcp"
        return "function" if part.name in self._facts.client_tools else "request"

    def _close_calls(self, status: str) -> Iterator[bytes]:
        """Complete the arguments of the calls, and the items of those that return elsewhere."""
        for call in tuple(self._calls.values()):
            if call.is_whole:
                continue
            call.is_whole = True
            if call.kind == "request":
                del self._calls[call.id]
                if status == "completed":
                    yield from self._whole(call.item(status))
                continue
            if status == "completed":
                members = {**call.position, "arguments": "".join(call.pieces)}
                if call.kind == "function":
                    members["name"] = call.name
                yield self._frame(f"{call.events}.done", members)
            if call.kind == "function":
                del self._calls[call.id]
                yield self._finish(call.output_index, call.item(status))

    def _returned(self, part: ToolReturnPart) -> Iterator[bytes]:
        if self._pairs:
            yield from self._whole(function_output_item(part))
            return
        call = self._calls.pop(part.tool_call_id, None)
        if call is None:  # An earlier response has the call.
            known = (self._facts.given.get(EARLIER_CALLS) or {}).get(part.tool_call_id)
            arguments, was_approved = known or ("{}", True)
            call = _Call("mcp", part.tool_call_id, part.name, [arguments], len(self._items))
            begun = mcp_call_item(call.id, call.name, "", was_approved=was_approved)
            yield from self._begin(begun)
            yield self._frame("mcp_call.in_progress", call.position)
            members: dict[str, Any] = {**call.position, "arguments": arguments}
            yield self._frame("mcp_call_arguments.done", members)
            item = mcp_call_item(call.id, call.name, arguments, "", part, was_approved=was_approved)
        else:
            item = call.item("", part)
        kind = "completed" if part.status == "success" else "failed"
        yield self._frame(f"mcp_call.{kind}", call.position)
        yield self._finish(call.output_index, item)

    # The end.

    def _end(self, usage: Usage) -> Iterator[bytes]:
        reason = self._stopped.reason if self._stopped is not None else Reason.ERROR
        failed = self._failure(reason)
        is_cut = failed is not None or reason in _CUT_SHORT
        yield from self._close("incomplete" if is_cut else "completed")
        for call in self._calls.values():
            yield self._finish(call.output_index, call.item("incomplete"))
        self._calls.clear()
        status, kind, details = "completed", "completed", None
        if reason is Reason.CANCELLED:  # Clients know no event for it.
            status, kind = "cancelled", "incomplete"
        elif failed is not None:
            status = kind = "failed"
        elif reason is Reason.MAX_TOKENS:
            status, kind, details = "incomplete", "incomplete", "max_output_tokens"
        at = self._newest_at or self._facts.created_at
        self._ended = response_object(
            self._facts,
            status,
            self._items,
            usage=usage,
            failed=failed,
            incomplete_reason=details,
            completed_at=int(at.timestamp()) if status == "completed" else None,
        )
        yield self._frame(kind, {"response": self._ended})

    def _failure(self, reason: Reason) -> Failed | None:
        """Return the failure that the response reports; None unless it failed."""
        if reason in _CUT_SHORT:
            return None
        is_failed = reason.run_status is RunStatus.FAILED and reason not in _COMPLETE
        return self._failed or (_UNKNOWN if is_failed else None)


def _frame_of(number: int, kind: str, members: Json) -> bytes:
    name = f"response.{kind}"
    body = {"type": name, "sequence_number": number, **members}
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(body))
