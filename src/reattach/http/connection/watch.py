"""One timer for the deadlines of all connections, and for clients that read nothing.

A connection in a state with a deadline is in the queue of that state. All connections of a queue
have the same timeout, so the first one expires first, and the timer costs nothing for the others. A
connection that was written to is checked until its client has read everything, a share of them per
interval, so that thousands of readers of one run do not delay the others.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from reattach.domain.limits import EVICTION_SECONDS, WATCH_ROUND_INTERVALS
from reattach.http.connection.states import State, Timeouts


class Watched(Protocol):
    """A connection, as seen by the watch."""

    sent_bytes: int
    """All bytes that were written to it."""
    read_bytes: int
    """The part of them that the client had read at the last check."""
    stuck_since: float | None
    """When a check last found that the client read some bytes, or that bytes started to wait."""
    has_unread: bool
    """The watch checks whether the client reads what was written."""
    half_closed: bool
    """The client has closed its sending side."""

    def time_is_up(self) -> None:
        """Leave the state, whose deadline has passed."""

    def abort_stalled(self) -> None:
        """Abort, because the client has read nothing for the stall time."""

    def abort(self) -> None:
        """Abort the connection."""

    def unread_bytes(self) -> int:
        """Return the written bytes that the client has not acknowledged."""

    def is_dead(self) -> bool:
        """Return whether the client's side no longer exists."""


Queue = dict[Watched, float]
"""Connections with their deadlines, in the order of the deadlines."""


class Watch:
    """The timer of all connections of a server. ``time`` returns monotonic seconds."""

    def __init__(self, timeouts: Timeouts, time: Callable[[], float] | None = None) -> None:
        self.timeouts: Final = timeouts
        self._time = time or asyncio.get_running_loop().time
        self._queues: dict[State, tuple[Queue, float]] = {
            State.HEAD: ({}, timeouts.head_seconds),
            State.BODY: ({}, timeouts.body_idle_seconds),
            State.IDLE: ({}, timeouts.idle_seconds),
            State.DRAINING: ({}, timeouts.linger_seconds),
        }
        self._unread: set[Watched] = set()
        self._round: list[Watched] = []
        """The connections that are still to be checked in this round."""
        self._share = 1
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._time()

    def queue(self, connection: Watched, state: State) -> Queue:
        """Put a connection that is in no queue into the queue of ``state``; return the queue."""
        queue, seconds = self._queues[state]
        queue[connection] = self._time() + seconds
        if self._timer is None:
            self._wait()
        return queue

    def watch_output(self, connection: Watched) -> None:
        """Check from now on whether the client reads what is written."""
        connection.has_unread = True
        self._unread.add(connection)
        if self._timer is None:
            self._wait()

    def forget(self, connection: Watched) -> None:
        self._unread.discard(connection)

    def evict(self) -> bool:
        """Close the connection that has waited longest for a request; False if none has waited."""
        now = self._time()
        for state in (State.HEAD, State.IDLE):
            queue, seconds = self._queues[state]
            for connection, deadline in queue.items():
                if deadline - seconds + EVICTION_SECONDS <= now:
                    connection.abort()
                    return True
                break
        return False

    def look(self) -> None:
        """Handle expired deadlines, and check a share of the connections with unread bytes."""
        now = self._time()
        for queue, _ in self._queues.values():
            while queue:
                connection, deadline = next(iter(queue.items()))
                if deadline > now:
                    break
                del queue[connection]
                connection.time_is_up()
        if not self._round:
            self._round = list(self._unread)
            self._share = -(-len(self._round) // WATCH_ROUND_INTERVALS)
        for _ in range(min(self._share, len(self._round))):
            connection = self._round.pop()
            if connection in self._unread and self._is_settled(connection, now):
                connection.has_unread = False
                self._unread.discard(connection)

    def _is_settled(self, connection: Watched, now: float) -> bool:
        """Return whether the connection needs no further checks until the next write."""
        read_bytes = connection.sent_bytes - connection.unread_bytes()
        if read_bytes == connection.sent_bytes:
            connection.read_bytes, connection.stuck_since = read_bytes, None
            if not connection.half_closed:
                return True
            if connection.is_dead():
                connection.abort()
                return True
        elif read_bytes > connection.read_bytes or connection.stuck_since is None:
            connection.read_bytes, connection.stuck_since = read_bytes, now
        elif now - connection.stuck_since >= self.timeouts.stall_seconds:
            connection.abort_stalled()
            return True
        return False

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.timeouts.interval_seconds, self._on_timer)

    def _on_timer(self) -> None:
        self.look()
        if self._unread or self._round or any(queue for queue, _ in self._queues.values()):
            self._wait()
        else:
            self._timer = None
