"""One stream of a probe as it arrived, and how late."""

import json
import statistics
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

End = Literal["whole", "closed", "reset", "silent", "error"]
"""How a body ended: complete; closed or reset too early; not at all; or with another status."""

_ONE_READ_SECONDS: Final = 0.004
"""Bytes that arrive within this time of each other were sent together."""

_WITH_THE_END_SECONDS: Final = 0.2

_ANY_ZLIB: Final = 47
"""The parameter with which zlib reads both gzip and deflate."""


@dataclass(frozen=True, slots=True)
class Frame:
    number: int
    sent_at_seconds: float
    """Seconds since the head, by the server's clock."""
    arrived_at_seconds: float
    """Seconds since the request, by the client's clock."""


@dataclass(slots=True)
class Recording:
    """A stream as it arrived. Times are seconds since the request was sent."""

    asked_frames: int
    status: int = 0
    """0: no answer came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    head_seconds: float | None = None
    frames: list[Frame] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    """Times at which bytes arrived; those that came together count once."""
    end: End = "silent"
    cause: str = ""
    """The words of the error with which it ended, if any."""
    ended_at_seconds: float = 0.0
    _rest: bytes = b""
    _decoder: "zlib._Decompress | None" = None

    def begin(self, status: int, headers: Mapping[str, str], at_seconds: float) -> None:
        """Take the head of the response."""
        self.status, self.headers, self.head_seconds = status, headers, at_seconds
        if self.encoding in {"gzip", "deflate"}:
            self._decoder = zlib.decompressobj(_ANY_ZLIB)

    @property
    def encoding(self) -> str | None:
        """The compression of the body."""
        name = self.headers.get("content-encoding", "identity").strip().lower()
        return None if name == "identity" else name

    @property
    def has_readable_frames(self) -> bool:
        """Whether the frames can be read without libraries for other compressions."""
        return self.encoding is None or self._decoder is not None

    def take(self, data: bytes, at_seconds: float) -> None:
        """Take bytes of the body."""
        if not self.reads or at_seconds - self.reads[-1] > _ONE_READ_SECONDS:
            self.reads.append(at_seconds)
        if not self.has_readable_frames:
            return
        if self._decoder is not None:
            try:
                data = self._decoder.decompress(data)
            except zlib.error:
                return
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for text in frames:
            frame = _frame(text, at_seconds)
            if frame is not None:
                self.frames.append(frame)

    @property
    def is_complete(self) -> bool:
        """Whether every frame came."""
        return len(self.frames) >= self.asked_frames

    @property
    def silence_seconds(self) -> float:
        """The time without a sign before the end.

        Bytes that came with the end had been withheld, so they are no sign.
        """
        last = self.ended_at_seconds - _WITH_THE_END_SECONDS
        signs = [at for at in (self.head_seconds, *self.reads) if at is not None and at < last]
        return self.ended_at_seconds - max(signs, default=0.0)

    @property
    def frames_per_read(self) -> float:
        return len(self.frames) / max(len(self.reads), 1)

    @property
    def how_it_ended(self) -> str:
        """The end in words, for people."""
        match self.end:
            case "whole":
                return "with an end as if it were whole" if not self.is_complete else "whole"
            case "closed":
                return "by closing the connection"
            case "reset":
                return "by resetting the connection"
            case "silent":
                return "without any sign: nothing more came, and the connection stayed open"
            case "error":
                return f"with the status {self.status}"


def delays_seconds(recordings: Sequence[Recording]) -> list[float]:
    """Return by how much each frame came later than the spacing of the fastest ones allows.

    Only the spacing of the frames is compared, so the clocks need not agree. Of several recordings
    of the same stream the smallest delay of each frame counts.
    """
    of_numbers: dict[int, float] = {}
    for recording in recordings:
        offsets = {one.number: one.arrived_at_seconds - one.sent_at_seconds
                   for one in recording.frames}  # fmt: skip
        fastest = min(offsets.values(), default=0.0)
        for number, offset in offsets.items():
            delay = offset - fastest
            of_numbers[number] = min(of_numbers.get(number, delay), delay)
    return [of_numbers[number] for number in sorted(of_numbers)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _frame(text: bytes, at_seconds: float) -> Frame | None:
    """Read a frame; None for anything else, such as a comment that a proxy has added."""
    try:
        data = json.loads(text.removeprefix(b"data: "))
        return Frame(int(data["number"]), float(data["at_seconds"]), at_seconds)
    except (ValueError, KeyError, TypeError):
        return None
