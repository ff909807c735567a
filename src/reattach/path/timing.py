"""How long an examination takes, and how its streams are paced."""

from dataclasses import dataclass
from typing import Final

from reattach.domain.limits import MAX_REQUEST_BYTES


@dataclass(frozen=True, slots=True)
class Timing:
    """The paces and durations of an examination. The defaults find what proxies do by default."""

    frames: int = 40
    interval_seconds: float = 0.1
    repeats: int = 3
    """Streams of which the fastest arrival of each frame counts, because a busy network delays
    some frames by chance, and a proxy delays the same ones each time."""
    head_seconds: float = 2.0
    """Seconds from the head of a response to its first frame."""
    burst_bytes: int = 64 * 1024
    """A frame larger than the buffers of proxies."""
    burst_seconds: float = 1.0
    """Silence before the burst and after it."""
    silences_seconds: tuple[float, ...] = (20.0, 45.0, 70.0, 110.0)
    enough_silence_seconds: float = 70.0
    """A path on which this passes needs no remedy: SDKs give up after 60 s."""
    total_seconds: float = 150.0
    """Duration of the stream that is never silent; 0: none."""
    total_interval_seconds: float = 1.0
    first_piece_seconds: float = 3.0
    """The longest wait for the beginning of the stream that the client leaves."""
    leaving_seconds: tuple[float, ...] = (1.0, 5.0, 30.0)
    """Times after the client has left at which the server is asked whether it has noticed."""
    connections: int = 20
    body_bytes: int = MAX_REQUEST_BYTES
    late_seconds: float = 0.15
    """The delay of a frame or head that a person may notice."""
    withheld_seconds: float = 0.5
    """The delay of a frame that is no longer only late."""
    grace_seconds: float = 10.0
    """Time for a stream beyond its planned duration."""
    upload_seconds: float = 60.0

    @property
    def stream_seconds(self) -> float:
        """Duration of a stream of frames."""
        return self.frames * self.interval_seconds

    @property
    def expected_seconds(self) -> float:
        """Duration of the whole examination, if nothing is wrong."""
        leaving = 1 + max(self.leaving_seconds, default=0.0)
        short = (self.repeats + 1) * self.stream_seconds + self.burst_seconds
        return max(self.total_seconds, leaving, short, *self.silences_seconds)


FULL: Final = Timing()
QUICK: Final = Timing(
    repeats=2, silences_seconds=(20.0,), total_seconds=0.0, leaving_seconds=(1.0, 5.0)
)
