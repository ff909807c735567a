"""The frames that a reader received, checked while they arrive."""

from __future__ import annotations

from typing import Any

from bench.faults.history import decoded
from reattach.wire.sse import DONE


class Received:
    """The frames of one run that one reader received after ``cursor``.

    ``feed`` fails on a gap, a repetition, a frame of another run and anything after the end.
    """

    def __init__(self, cursor: int = 0) -> None:
        self.cursor = cursor
        self.frames: list[bytes] = []
        self.first_seq = cursor + 1
        self.pings = 0
        self.done = False
        self.run_id: str | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            self._take(frame + b"\n\n")

    def reconnect(self) -> None:
        """Discard an incomplete frame, because a new connection begins with a whole one."""
        self._rest = b""

    def _take(self, frame: bytes) -> None:
        assert not self.done, f"after [DONE]: {frame!r}"
        if frame == DONE:
            self.done = True
            return
        event = decoded(frame)
        if event["message_type"] == "ping" and event["seq_id"] in {self.cursor, None}:
            self.pings += 1
            return
        assert event["seq_id"] == self.cursor + 1, f"after {self.cursor} came {frame!r}"
        self.run_id = self.run_id or event["run_id"]
        assert event["run_id"] == self.run_id, frame
        self.cursor += 1
        self.frames.append(frame)

    @property
    def by_seq(self) -> dict[int, bytes]:
        return dict(enumerate(self.frames, self.first_seq))

    @property
    def kinds(self) -> list[str]:
        return [decoded(frame)["message_type"] for frame in self.frames]

    @property
    def text(self) -> str:
        return answer(self.frames)

    def end(self) -> dict[str, Any]:
        """Return the stop reason and the error's type. Fails unless the whole run was read."""
        assert self.done
        assert self._rest == b""
        return end_of(self.frames)


def answer(frames: list[bytes]) -> str:
    """Join the text of all assistant messages in ``frames``."""
    events = map(decoded, frames)
    return "".join(e["content"] for e in events if e["message_type"] == "assistant_message")


def end_of(frames: list[bytes]) -> dict[str, Any]:
    """Return the stop reason and error type of the terminal group, and check that it is the end."""
    events = [decoded(frame) for frame in frames]
    kinds = [event["message_type"] for event in events]
    first = kinds.index("stop_reason")
    group = kinds[first:]
    assert group in (
        ["stop_reason", "usage_statistics"],
        ["stop_reason", "error_message", "usage_statistics"],
    ), kinds
    reason = events[first]["stop_reason"]
    error = events[first + 1].get("error_type")
    failed = reason not in {"end_turn", "cancelled", "max_steps", "requires_approval", "tool_rule"}
    assert failed == (len(group) == 3), group
    return {"stop_reason": reason, "error_type": error}
