"""Recorded exchanges of the retired server, and the reduction of answers to their fixed part."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FILE = Path(__file__).parents[1] / "golden" / "retired_server.jsonl"
EXCHANGES: dict[str, Json] = {
    exchange["name"]: exchange for exchange in map(json.loads, FILE.read_text("utf-8").splitlines())
}

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ID = re.compile(rf"(?:(run|message|step|ping|conv|agent|call)[-_])?({_UUID}|[0-9a-f]{{12}})")
_CALL_ID = re.compile(r"call[-_][\w-]+")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_COUNTS = {
    "completion_tokens",
    "prompt_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "context_tokens",
}


@dataclass(frozen=True)
class Frame:
    """A frame of a stream: its event name, and its data as JSON or as text."""

    event: str | None
    data: Json | str
    compact: bool = True

    @property
    def type(self) -> str:
        return self.data if isinstance(self.data, str) else str(self.data["message_type"])


def frames_of(body: str) -> list[Frame]:
    """Parse frames strictly, as PROTOCOL.md defines them."""
    assert body.endswith("\n\n")
    return [_frame(text) for text in body.removesuffix("\n\n").split("\n\n")]


def _frame(text: str) -> Frame:
    match = re.fullmatch(r"(?:event: (\w+)\n)?data: (.*)", text)
    assert match, text
    if match[2] == "[DONE]":
        return Frame(match[1], match[2])
    data = json.loads(match[2])
    compact = json.dumps(data, ensure_ascii=False, separators=(",", ":")) == match[2]
    return Frame(match[1], data, compact)


@dataclass
class Reduction:
    """Replaces values that differ from call to call by their position in the answer.

    Ids become numbers in order of appearance, so that equal ids stay equal. An OTID that is derived
    from a message's id becomes that number and its index.
    """

    _ids: dict[str, str] = field(default_factory=dict)

    def frames(self, frames: list[Frame]) -> list[str]:
        """Write each frame as a text that preserves the order of its members."""
        return [self._text_of(frame) for frame in frames]

    def json(self, value: Any) -> str:
        return json.dumps(self._value("", value), ensure_ascii=False)

    def _text_of(self, frame: Frame) -> str:
        data = frame.data if isinstance(frame.data, str) else self.json(frame.data)
        return f"{frame.event or ''}{'' if frame.compact else ' (spaces)'}: {data}"

    def _value(self, key: str, value: Any) -> Any:
        if key in _COUNTS:
            assert value is None or isinstance(value, int)
            return "<count>"
        match value:
            case dict():
                return {self._text(name): self._value(name, one) for name, one in value.items()}
            case list():
                return [self._value(key, one) for one in value]
            case str() if key == "otid" and value not in self._ids:
                return self._otid(value)
            case str() if key == "date":
                assert _DATE.fullmatch(value), value
                return "<date>"
            case str() if key == "tool_call_id":
                assert _CALL_ID.fullmatch(value), value
                return self._id("call", value)
            case str():
                return self._text(value)
            case _:
                return value

    def _text(self, value: str) -> str:
        return _ID.sub(lambda match: self._id(match[1] or "id", match[0]), value)

    def _id(self, kind: str, value: str) -> str:
        if value not in self._ids:
            number = sum(known.startswith(f"<{kind} ") for known in self._ids.values()) + 1
            self._ids[value] = f"<{kind} {number}>"
        return self._ids[value]

    def _otid(self, value: str) -> str:
        for known, name in self._ids.items():
            uuid = known.partition("-")[2]
            if name.startswith("<message") and uuid[:-2] == value[:-2]:
                index = int(value[-2:], 16) & 0x7F
                assert int(value[-2:], 16) & 0x80 == int(uuid[-2:], 16) & 0x80
                return f"{name} part {index}"
        return "<otid>"
