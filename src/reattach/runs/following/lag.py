"""The time from the engine to the sockets of a few readers."""

import time
from collections import deque

from reattach.domain.ids import Seq
from reattach.meters.instruments import Histogram


class LagMeter:
    """Measures how late one reader gets the events that are put after it came.

    ``put_times`` has the last seq of recent appends, each with the time when it was put.
    """

    __slots__ = ("_put_times", "_seconds", "_seen_seq")

    def __init__(
        self, put_times: deque[tuple[Seq, float]], seconds: Histogram, last_seq: Seq
    ) -> None:
        self._put_times = put_times
        self._seconds = seconds
        self._seen_seq = last_seq

    def note_sent(self, cursor: Seq) -> None:
        """Observe the lag of each append that the reader was sent since the last call."""
        if cursor <= self._seen_seq:
            return
        now = time.monotonic()
        for seq, put_at in reversed(self._put_times):
            if seq <= self._seen_seq:
                break
            if seq <= cursor:
                self._seconds.observe(now - put_at)
        self._seen_seq = cursor
