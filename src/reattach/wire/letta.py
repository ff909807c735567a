"""The Letta dialect: events as frames of its streams, messages as items of its lists, and back.

Pure functions. Key order and null members match the recorded exchanges; ``seq_id`` and ``run_id``
are added to every event.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from reattach.domain.events import (
    CompactionBegan,
    Event,
    Failed,
    Output,
    Ping,
    Place,
    Stopped,
    StopReason,
    Usage,
)
from reattach.domain.ids import MessageId, Seq, StepId, part_index, part_otid
from reattach.domain.messages import (
    CompactionStats,
    Fragment,
    HiddenReasoningPart,
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
    awaits_approval,
)
from reattach.wire.sse import data_frame, error_frame, frame_data
from reattach.wire.template import EMPTY_TEXT, around

Json = dict[str, Any]

MessageType = Literal[
    "system_message",
    "user_message",
    "assistant_message",
    "reasoning_message",
    "hidden_reasoning_message",
    "tool_call_message",
    "tool_return_message",
    "approval_request_message",
    "approval_response_message",
    "summary_message",
    "event_message",
]
"""The values of ``include_return_message_types``."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

SEQ_MEMBER: Final = b'"seq_id":'
"""The name of the member with the seq in every frame of a log."""

TEXT_MEMBERS: Final[Mapping[type[Fragment], Sequence[bytes]]] = {
    TextPart: (b'"content":',),
    ReasoningPart: (b'"reasoning":',),
    ToolCallDelta: (b'"arguments":', b'"arguments":'),
}
"""The names of the members with the text of a piece, in their order in a frame."""

_NO_TEXT: Final[Fragment] = TextPart("")
_NO_REASONING: Final[Fragment] = ReasoningPart("")


def encode(event: Event, seq: Seq, run_id: str) -> bytes:
    """Return the frame of ``event`` with the seq ``seq``."""
    data = _encode(body(event, seq, run_id))
    return error_frame(data) if isinstance(event, Failed) else data_frame(data)


class Encoder:
    """``encode`` for the events of one run.

    Consecutive pieces of a text, of reasoning or of the arguments of a call differ only in their
    seq and text, so the rest of the frame is cached.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._place: Place | None = None
        self._empty: Fragment = _NO_TEXT
        """The piece whose frame is cached, without its text."""
        self._before_seq = self._before_text = self._between_texts = self._after_text = b""

    def encode(self, event: Event, seq: Seq) -> bytes:
        if type(event) is not Output:
            return encode(event, seq, self._run_id)
        place, part = event.place, event.parts[0]
        if type(part) is TextPart:
            return self.text(place, seq, part.text)
        if type(part) is ReasoningPart and part.signature is None:
            text, empty = part.text, _NO_REASONING
        elif type(part) is ToolCallDelta and part.name is None and part.arguments is not None:
            text = part.arguments
            empty = ToolCallDelta(part.tool_call_id, None, "", part.needs_approval)
        else:
            return encode(event, seq, self._run_id)
        if place is not self._place or empty != self._empty:
            self._prepare(place, empty)
        encoded = _encode(text)
        if self._between_texts:
            encoded += self._between_texts + encoded
        head = b"%b%d%b" % (self._before_seq, seq, self._before_text)
        return head + encoded + self._after_text

    def text(self, place: Place, seq: Seq, text: str) -> bytes:
        """Return the frame of a piece of text."""
        if place is not self._place or self._empty is not _NO_TEXT:
            self._prepare(place, _NO_TEXT)
        return b"%b%d%b%b}\n\n" % (self._before_seq, seq, self._before_text, _encode(text))

    def frames(self, events: Sequence[Event], *, after_seq: Seq) -> list[bytes]:
        """Encode events that follow the one with ``after_seq``."""
        return [self.encode(event, after_seq + n) for n, event in enumerate(events, 1)]

    def _prepare(self, place: Place, empty: Fragment) -> None:
        frame = encode(Output(place, (empty,)), Seq(0), self._run_id)
        members = [(name, EMPTY_TEXT) for name in TEXT_MEMBERS[type(empty)]]
        found = around(frame, (SEQ_MEMBER, b"0"), *members)
        self._before_seq, self._before_text, *between, self._after_text = found
        self._between_texts = between[0] if between else b""
        self._place, self._empty = place, empty


def message_type(event: Event) -> MessageType | None:
    """Return the message type of ``event``; None for pings and the terminal group."""
    if isinstance(event, Output):
        return _part_type(event.parts[0])
    return "event_message" if isinstance(event, CompactionBegan) else None


def _part_type(part: Fragment) -> MessageType:
    kind = _MESSAGE_TYPES[type(part)]
    waits = kind == "tool_call_message" and awaits_approval(part)
    return "approval_request_message" if waits else kind


def keepalive(ping_id: str, at: datetime, last_seq: Seq, run_id: str) -> bytes:
    """Return a ping for one reader, which is not logged.

    Its ``seq_id`` is the last one sent, if any.
    """
    return data_frame(_encode(head("ping", ping_id, at, seq=last_seq or None, run_id=run_id)))


def body(event: Event, seq: Seq | None, run_id: str | None) -> Json:
    """Return the JSON of ``event``. ``seq`` is None in lists, which have no numbers."""
    return _BODIES[type(event)](event, seq, run_id)


@lru_cache(maxsize=1024)
def _date(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def head(
    message_type: str,
    message_id: str,
    at: datetime,
    *,
    seq: Seq | None,
    run_id: str | None,
    name: str | None = None,
    otid: str | None = None,
    sender_id: str | None = None,
    step_id: str | None = None,
) -> Json:
    return {
        "id": message_id,
        "date": _date(at),
        "name": name,
        "message_type": message_type,
        "otid": otid,
        "sender_id": sender_id,
        "step_id": step_id,
        "is_err": None,
        "seq_id": seq,
        "run_id": run_id,
    }


def _ping(event: Ping, seq: Seq | None, run_id: str | None) -> Json:
    return head("ping", event.id, event.at, seq=seq, run_id=run_id)


def _output(event: Output, seq: Seq | None, run_id: str | None) -> Json:
    place, part = event.place, event.parts[0]
    result = head(
        _part_type(part),
        place.message_id,
        place.at,
        seq=seq,
        run_id=run_id,
        otid=part_otid(place.message_id, place.index),
        step_id=place.step_id,
    )
    match part:
        case TextPart(text):
            result["content"] = text
        case ReasoningPart(text, signature):
            result |= {"source": "reasoner_model", "reasoning": text, "signature": signature}
        case HiddenReasoningPart(state, text):
            result |= {"state": state, "hidden_reasoning": text}
        case ToolReturnPart():
            returned = return_members(part)
            result |= {"name": part.name, **returned}
            result["tool_returns"] = [{"type": "tool", **returned}]
        case SummaryPart():
            result |= summary_members(part)
        case ToolCallPart() | ToolCallDelta():
            calls = [_call_members(one) for one in event.parts]
            result["tool_call"] = calls[0]
            result["tool_calls"] = calls[0] if isinstance(part, ToolCallDelta) else calls
            if part.needs_approval:
                result["otid"] = place.message_id
    return result


def _call_members(call: Fragment) -> Json:
    assert isinstance(call, ToolCallPart | ToolCallDelta)
    members = {"name": call.name, "arguments": call.arguments, "tool_call_id": call.tool_call_id}
    if isinstance(call, ToolCallPart) or call.needs_approval:
        return members
    return {key: value for key, value in members.items() if value is not None}


def _compaction_began(event: CompactionBegan, seq: Seq | None, run_id: str | None) -> Json:
    result = head("event_message", event.id, event.at, seq=seq, run_id=run_id)
    result["step_id"] = event.step_id
    result["event_type"] = "compaction"
    result["event_data"] = {
        "trigger": event.trigger,
        "context_token_estimate": event.context_tokens,
        "context_window": event.context_window_tokens,
    }
    return result


def summary_members(summary: SummaryPart) -> Json:
    stats = summary.stats
    return {
        "summary": summary.text,
        "compaction_stats": None if stats is None else msgspec.to_builtins(stats),
        "kept_from_message_id": summary.kept_from,
    }


def return_members(returned: ToolReturnPart) -> Json:
    return {
        "tool_return": returned.output,
        "status": returned.status,
        "tool_call_id": returned.tool_call_id,
        "stdout": returned.stdout,
        "stderr": returned.stderr,
    }


def _stopped(event: Stopped, seq: Seq | None, run_id: str | None) -> Json:
    result: Json = {"message_type": "stop_reason", "stop_reason": event.reason}
    return result if seq is None else result | {"seq_id": seq, "run_id": run_id}


def _failed(event: Failed, seq: Seq | None, run_id: str | None) -> Json:
    return {
        "message_type": "error_message",
        "run_id": run_id,
        "error_type": event.error_type,
        "message": event.message,
        "detail": event.detail,
        "seq_id": seq,
    }


def _usage(event: Usage, seq: Seq | None, run_id: str | None) -> Json:
    result: Json = {
        "message_type": "usage_statistics",
        "completion_tokens": event.completion_tokens,
        "prompt_tokens": event.prompt_tokens,
        "total_tokens": event.total_tokens,
        "step_count": event.step_count,
        "run_ids": None,
        "cached_input_tokens": event.cached_input_tokens,
        "cache_write_tokens": event.cache_write_tokens,
        "reasoning_tokens": event.reasoning_tokens,
        "context_tokens": event.context_tokens,
    }
    return result if seq is None else result | {"seq_id": seq, "run_id": run_id}


_MESSAGE_TYPES: dict[type, MessageType] = {
    TextPart: "assistant_message",
    ReasoningPart: "reasoning_message",
    HiddenReasoningPart: "hidden_reasoning_message",
    ToolCallPart: "tool_call_message",
    ToolCallDelta: "tool_call_message",
    ToolReturnPart: "tool_return_message",
    SummaryPart: "summary_message",
}

_BODIES: dict[type, Callable[[Any, Seq | None, str | None], Json]] = {
    Output: _output,
    Ping: _ping,
    CompactionBegan: _compaction_began,
    Stopped: _stopped,
    Failed: _failed,
    Usage: _usage,
}


# Decoding.


def decode(frame: bytes) -> Event:
    """Return the event of a frame that ``encode`` made."""
    data = _decode(frame_data(frame))
    kind = data["message_type"]
    if kind in _PARTS:
        return Output(_place(data), tuple(_PARTS[kind](data)))
    return _EVENTS[kind](data)


def _place(data: Json) -> Place:
    index = 0 if data["otid"] == data["id"] else part_index(data["otid"])
    return Place(
        MessageId(data["id"]), StepId(data["step_id"]), index, datetime.fromisoformat(data["date"])
    )


def _read_calls(data: Json) -> Iterator[Fragment]:
    calls = data["tool_calls"]
    waits = data["message_type"] == "approval_request_message"
    if isinstance(calls, dict):
        yield ToolCallDelta(calls["tool_call_id"], calls.get("name"), calls.get("arguments"), waits)
        return
    for call in calls:
        yield ToolCallPart(call["tool_call_id"], call["name"] or "", call["arguments"] or "", waits)


def _read_return(data: Json) -> ToolReturnPart:
    stdout, stderr = data["stdout"], data["stderr"]
    return ToolReturnPart(
        data["tool_call_id"],
        data["name"],
        data["status"],
        data["tool_return"],
        None if stdout is None else tuple(stdout),
        None if stderr is None else tuple(stderr),
    )


def _read_compaction_began(data: Json) -> CompactionBegan:
    event_data = data["event_data"]
    return CompactionBegan(
        data["id"],
        StepId(data["step_id"]),
        datetime.fromisoformat(data["date"]),
        event_data["trigger"],
        event_data["context_token_estimate"],
        event_data["context_window"],
    )


def _read_summary(data: Json) -> SummaryPart:
    stats = msgspec.convert(data["compaction_stats"], CompactionStats | None)
    return SummaryPart(data["summary"], data["kept_from_message_id"], stats)


_USAGE_MEMBERS = Usage.__dataclass_fields__.keys()

_PARTS: dict[str, Callable[[Json], Iterable[Fragment]]] = {
    "assistant_message": lambda data: [TextPart(data["content"])],
    "reasoning_message": lambda data: [ReasoningPart(data["reasoning"], data["signature"])],
    "hidden_reasoning_message": lambda data: [
        HiddenReasoningPart(data["state"], data["hidden_reasoning"])
    ],
    "tool_call_message": _read_calls,
    "approval_request_message": _read_calls,
    "tool_return_message": lambda data: [_read_return(data)],
    "summary_message": lambda data: [_read_summary(data)],
}

_EVENTS: dict[str, Callable[[Json], Event]] = {
    "ping": lambda data: Ping(data["id"], datetime.fromisoformat(data["date"])),
    "event_message": _read_compaction_began,
    "stop_reason": lambda data: Stopped(StopReason(data["stop_reason"])),
    "error_message": lambda data: Failed(data["error_type"], data["message"], data["detail"]),
    "usage_statistics": lambda data: Usage(**{key: data[key] for key in _USAGE_MEMBERS}),
}
