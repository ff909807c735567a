"""What the readers of a run saw, held against each other and against its log."""

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
    """What sort of promise a finding says was broken."""

    LOSS = "loss"
    DOUBLE = "double"
    ORPHAN = "orphan"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should not have been seen."""

    kind: Kind
    what: str


@dataclass
class Witness:
    """All that the readers of one run saw. ``findings`` is empty if everything was right.

    ``may_lose`` says that the log's store loses what it acknowledged: a reader may be told then
    that events are gone, but never be given others under their numbers.
    """

    name: str
    may_lose: bool = False
    run_id: str | None = None
    frames: dict[int, bytes] = field(default_factory=dict)
    events_read: int = 0
    ended_at: float | None = None
    """When the first reader had all of it, by the monotonic clock in seconds."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set then."""
    findings: list[Finding] = field(default_factory=list)

    def find(self, kind: Kind, what: str) -> None:
        self.findings.append(Finding(kind, f"{self.name}: {what}"))

    @property
    def last_seq(self) -> int:
        return max(self.frames, default=0)

    def end(self) -> str:
        """How the run ended as its readers saw it: the error's type, or the stop reason."""
        events = [decoded(frame) for frame in self.frames.values()]
        for event in events:
            if event["message_type"] == "error_message":
                return str(event["error_type"])
        reasons = [e["stop_reason"] for e in events if e["message_type"] == "stop_reason"]
        return str(reasons[0]) if reasons else "none"

    def check_log(self, log: Sequence[bytes], first_seq: int) -> None:
        """Hold what was seen against the whole ``log`` that is kept, whose first is ``first_seq``.

        It must be dense, end with the one terminal group, and hold all that was seen; a log that
        lost events must not begin before anything that was seen.
        """
        events = [decoded(frame) for frame in log]
        kept = dict(enumerate(log, first_seq))
        if [event["seq_id"] for event in events] != list(kept):
            self.find(Kind.OTHER, "the log is not dense")
        kinds = [str(event["message_type"]) for event in events]
        groups = kinds.count("stop_reason")
        if groups > 1:
            self.find(Kind.DOUBLE, f"{groups} terminal groups")
        if groups == 0 or kinds[kinds.index("stop_reason") :] not in _GROUPS:
            self.find(Kind.OTHER, f"the log ends with {kinds[-4:]}")
        for seq, frame in self.frames.items():
            if seq not in kept:
                if not (self.may_lose and seq < first_seq):
                    self.find(Kind.LOSS, f"event {seq} was seen and is not in the log")
            elif kept[seq] != frame:
                self.find(Kind.OTHER, f"event {seq} was seen with other bytes")
        if first_seq > 1 and not self.may_lose:
            self.find(Kind.LOSS, f"the log begins with {first_seq}")


class Reader:
    """One reader of a run, over as many connections as it takes. ``done`` when it has the end."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self.cursor = 0
        self.done = False
        self._rest = b""

    def reconnect(self) -> None:
        """Drop what had come of a frame whose rest did not."""
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Take what came; return how many events it brought."""
        data = self._rest + data
        end = data.rfind(b"\n\n")
        whole, self._rest = (b"", data) if end < 0 else (data[: end + 2], data[end + 2 :])
        before = self.witness.events_read
        for frame in split_frames(whole):
            self._take(frame)
        return self.witness.events_read - before

    def skip_to(self, cursor: int) -> None:
        """Go on at ``cursor``, having been told that the events up to it are gone."""
        self.told_of_loss()
        self.cursor = max(self.cursor, cursor)

    def told_of_loss(self) -> None:
        if not self.witness.may_lose:
            self.witness.find(Kind.LOSS, f"told that events after {self.cursor} are gone")

    def finish(self) -> None:
        """There is nothing more to read."""
        self.done = True
        if self.witness.ended_at is None:
            self.witness.ended_at = time.monotonic()
            self.witness.ended.set()

    def _take(self, frame: bytes) -> None:
        witness = self.witness
        if self.done:
            witness.find(Kind.DOUBLE, f"after [DONE] came {frame!r}")
        elif frame == DONE:
            self.finish()
        else:
            event = decoded(frame)
            seq = event["seq_id"]
            if event["message_type"] == "ping" and seq == self.cursor:
                return  # a keepalive of this connection
            witness.events_read += 1
            if seq <= self.cursor:
                witness.find(Kind.DOUBLE, f"event {seq} again after {self.cursor}")
            elif seq > self.cursor + 1:
                witness.find(Kind.LOSS, f"event {seq} after {self.cursor}")
            if event["run_id"] != witness.run_id:
                witness.find(Kind.OTHER, f"an event of {event['run_id']}")
            if witness.frames.setdefault(seq, frame) != frame:
                witness.find(Kind.OTHER, f"event {seq} with other bytes than before")
            self.cursor = max(self.cursor, seq)


def decoded(frame: bytes) -> dict[str, Any]:
    """The event in a frame."""
    event: dict[str, Any] = msgspec.json.decode(frame_data(frame))
    return event
