"""The history of a run as its readers saw it, checked between them and against its log."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from reattach.wire.sse import DONE, frame_data, split_frames

_GROUPS: Final = (
    ["stop_reason", "usage_statistics"],
    ["stop_reason", "error_message", "usage_statistics"],
)


class Kind(StrEnum):
    """The kind of promise that a finding reports as broken."""

    LOSS = "loss"
    DOUBLE = "double"
    ORPHAN = "orphan"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation that breaks a promise."""

    kind: Kind
    what: str


@dataclass
class History:
    """Everything that the readers of one run saw. ``findings`` is empty if no promise broke.

    With ``may_lose`` the log's store loses acknowledged events. Readers may then get an error that
    reports the loss, but never other events under the same numbers.
    """

    name: str
    may_lose: bool = False
    run_id: str | None = None
    frames: dict[int, bytes] = field(default_factory=dict)
    events_read: int = 0
    ended_at: float | None = None
    """Monotonic time at which the first reader had the whole run."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at that time."""
    findings: list[Finding] = field(default_factory=list)

    def report(self, kind: Kind, what: str) -> None:
        self.findings.append(Finding(kind, f"{self.name}: {what}"))

    @property
    def last_seq(self) -> int:
        return max(self.frames, default=0)

    def end(self) -> str:
        """Return the error type, or else the stop reason, that readers saw."""
        events = [decoded(frame) for frame in self.frames.values()]
        for event in events:
            if event["message_type"] == "error_message":
                return str(event["error_type"])
        reasons = [e["stop_reason"] for e in events if e["message_type"] == "stop_reason"]
        return str(reasons[0]) if reasons else "none"

    def check_text(self, expected: str) -> None:
        """Compare the joined text of the answer, whitespace at its ends aside."""
        events = [decoded(frame) for _, frame in sorted(self.frames.items())]
        texts = (e["content"] for e in events if e["message_type"] == "assistant_message")
        if (text := "".join(texts).strip()) != expected.strip():
            self.report(Kind.OTHER, f"its text is {text!r} instead of {expected!r}")

    def check_log(self, log: Sequence[bytes], first_seq: int) -> None:
        """Compare the history with the whole stored ``log``, whose first event is ``first_seq``.

        The log must be dense, end with one terminal group and hold every event that was seen. Only
        a store that may lose events may lack the events before ``first_seq``.
        """
        events = [decoded(frame) for frame in log]
        kept = dict(enumerate(log, first_seq))
        if [event["seq_id"] for event in events] != list(kept):
            self.report(Kind.OTHER, "the log is not dense")
        kinds = [str(event["message_type"]) for event in events]
        groups = kinds.count("stop_reason")
        if groups > 1:
            self.report(Kind.DOUBLE, f"{groups} terminal groups")
        if groups == 0 or kinds[kinds.index("stop_reason") :] not in _GROUPS:
            self.report(Kind.OTHER, f"the log ends with {kinds[-4:]}")
        for seq, frame in self.frames.items():
            if seq not in kept:
                if not (self.may_lose and seq < first_seq):
                    self.report(Kind.LOSS, f"event {seq} was read and is not in the log")
            elif kept[seq] != frame:
                self.report(Kind.OTHER, f"event {seq} was read with other bytes")
        if first_seq > 1 and not self.may_lose:
            self.report(Kind.LOSS, f"the log begins at event {first_seq}")


class Reader:
    """One reader of a run, over any number of connections. ``done`` once it has the end."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.cursor = 0
        self.done = False
        self._rest = b""

    def reconnect(self) -> None:
        """Discard an incomplete frame: a new connection begins with a whole one."""
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Read a chunk of the body and return the number of events in it."""
        data = self._rest + data
        end = data.rfind(b"\n\n")
        whole, self._rest = (b"", data) if end < 0 else (data[: end + 2], data[end + 2 :])
        before = self.history.events_read
        for frame in split_frames(whole):
            self._take(frame)
        return self.history.events_read - before

    def skip_to(self, cursor: int) -> None:
        """Continue at ``cursor`` after an error that reported the events before it as gone."""
        self.report_loss()
        self.cursor = max(self.cursor, cursor)

    def report_loss(self) -> None:
        if not self.history.may_lose:
            self.history.report(
                Kind.LOSS, f"the server reports that events after {self.cursor} are gone"
            )

    def finish(self) -> None:
        """Note that nothing more is to be read."""
        self.done = True
        if self.history.ended_at is None:
            self.history.ended_at = time.monotonic()
            self.history.ended.set()

    def _take(self, frame: bytes) -> None:
        history = self.history
        if self.done:
            history.report(Kind.DOUBLE, f"{frame!r} came after [DONE]")
        elif frame == DONE:
            self.finish()
        else:
            event = decoded(frame)
            seq = event["seq_id"]
            if event["message_type"] == "ping" and seq == self.cursor:
                return  # a keepalive of this connection
            history.events_read += 1
            if seq <= self.cursor:
                history.report(Kind.DOUBLE, f"event {seq} came again after {self.cursor}")
            elif seq > self.cursor + 1:
                history.report(Kind.LOSS, f"event {seq} came directly after {self.cursor}")
            if event["run_id"] != history.run_id:
                history.report(Kind.OTHER, f"an event of another run, {event['run_id']}")
            if history.frames.setdefault(seq, frame) != frame:
                history.report(Kind.OTHER, f"event {seq} came with other bytes than before")
            self.cursor = max(self.cursor, seq)


def decoded(frame: bytes) -> dict[str, Any]:
    """Decode the event in a frame."""
    event: dict[str, Any] = msgspec.json.decode(frame_data(frame))
    return event
