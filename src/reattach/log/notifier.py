"""Fair notification of tail listeners in the event loop."""

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

Listener = Callable[[], None]
"""Called after a change; reads the new state itself. Must neither raise nor block."""

_MIN_SLICE_SECONDS: Final = 0.001
"""The least time for notifications before other callbacks of the event loop run."""

_CALLS_PER_CLOCK_CHECK: Final = 16
"""Listeners called between two looks at the clock."""

_DISCARDED: Final = object()


class Notifier:
    """A first-in, first-out queue of the listeners to notify.

    A queued listener is not queued twice; one call covers everything since. After its call it goes
    to the end of the queue, so it waits for at most one call of every other listener, however many
    events there are.

    Notifications and the other callbacks of the event loop alternate in time slices of equal
    length.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: dict[Listener, None] = {}
        self._is_scheduled = False
        self._slice_ended_at = 0.0

    def __len__(self) -> int:
        """Return the number of listeners that wait for their notification."""
        return len(self._queue)

    def enqueue(self, listeners: Mapping[Listener, None]) -> None:
        """Notify ``listeners`` soon."""
        if listeners:
            self._queue.update(listeners)
            self._schedule()

    def discard(self, listener: Listener) -> None:
        """Remove ``listener`` from the queue, if it is there."""
        self._queue.pop(listener, None)

    def notify(self) -> None:
        """Call queued listeners for one time slice, and schedule the rest.

        Call it directly after the last ``enqueue`` of a batch to save a tick of the event loop.
        """
        begin = now = time.monotonic()
        until = begin + max(begin - self._slice_ended_at, _MIN_SLICE_SECONDS)
        queue = self._queue
        while queue and now < until:
            for listener in tuple(islice(queue, _CALLS_PER_CLOCK_CHECK)):
                if queue.pop(listener, _DISCARDED) is None:
                    listener()
            now = time.monotonic()
        self._slice_ended_at = now
        if queue:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._run_scheduled)

    def _run_scheduled(self) -> None:
        self._is_scheduled = False
        if self._queue:
            self.notify()
