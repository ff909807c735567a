"""The form of streams for ``EventSource``, checked as they arrive."""

from __future__ import annotations

import re
from typing import Any

from reattach.wire.event_source import RETRY_MS

DONE = b"data: [DONE]\n\n"
SEQ = re.compile(rb'"seq_id":(\d+)')


class EventStream:
    """Gives the frames of such a stream in the form of the Letta API, so that both can be compared.

    It keeps ``last_id`` of the last complete frame and ``retry_ms``, as an ``EventSource`` does.
    ``run_id`` says that the ids name this run.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self.done = False
        self.says_to_come_back = False
        """The last frame has nothing but the pause: the body ends before the end of the run."""
        self._prefix = "" if run_id is None else f"{run_id}:"
        self._buffer = b""
        self._lines: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Return the frames that are complete now."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        frames = b""
        for line in lines:
            if line.startswith(b":"):
                self.comments += 1
            elif line:
                self._lines.append(line)
            else:
                frames += self._frame()
                self._lines.clear()
        return frames

    @property
    def is_between_frames(self) -> bool:
        """Whether no line of an incomplete frame has come, except those of the connection."""
        return not self._buffer and (not self._lines or self._lines == [b"retry: %d" % RETRY_MS])

    def _frame(self) -> bytes:
        assert not self.done, self._lines
        assert not self.says_to_come_back, self._lines
        while self._lines and self._lines[0].startswith(b"retry: "):
            # The end of a silent stream may follow its first line, and then both have the pause.
            assert self.retry_ms is None or len(self._lines) == 1, self._lines
            self.retry_ms = int(self._lines.pop(0).removeprefix(b"retry: "))
        if not self._lines:
            self.says_to_come_back = True
            return b""
        if self._lines[0] == b"event: ping":
            return b"\n".join(self._lines[1:]) + b"\n\n"
        if self._lines[0] == b"event: done":
            self.done = True
            expected = self.last_id.removeprefix(self._prefix) or r"\d+"
            match = re.fullmatch(f"id: {self._prefix}{expected}-done", self._lines[1].decode())
            assert match, self._lines
            self.last_id = self._lines[1].decode().removeprefix("id: ")
            assert self._lines[2:] == [DONE.rstrip()]
            return DONE
        frame = b"\n".join(self._lines[1:]) + b"\n\n"
        (seq,) = SEQ.findall(frame)[:1]
        assert self._lines[0].decode() == f"id: {self._prefix}{seq.decode()}", self._lines
        self.last_id = self._lines[0].decode().removeprefix("id: ")
        return frame


def query_of(body: Any) -> dict[str, Any]:
    """Return the members of a resume's body as query parameters; null is absent."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (body or {}).items()
        if value is not None
    }
