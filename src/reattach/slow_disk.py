"""Short work on a disk in the event loop, and its way into threads while the disk is slow."""

import math
import time
from typing import Final

_FACTOR: Final = 100
"""For how many times as long as slow work took threads do such work after it. So a slow disk takes
at most a hundredth of the event loop's time."""


class SlowDisk:
    """Keeps work out of the event loop for a while after the disk held some up.

    The pause has at most ``longest_pause_seconds``.
    """

    def __init__(self, longest_pause_seconds: float = math.inf) -> None:
        self._longest_pause_seconds = longest_pause_seconds
        self._pauses_until = 0.0

    def begin(self) -> float | None:
        """Return the time at which work begins; None if a thread has to do it now."""
        now = time.monotonic()
        return None if now < self._pauses_until else now

    def note(self, began: float, most_seconds: float) -> None:
        """Note the end of work, whether it succeeded or not. Without the disk it takes less."""
        ended = time.monotonic()
        if ended - began > most_seconds:
            pause = min(_FACTOR * (ended - began), self._longest_pause_seconds)
            self._pauses_until = ended + pause
