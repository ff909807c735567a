"""One timer over all connections: whose time is up, and who takes nothing.

A connection that is in a state with a deadline stands in the queue of that state. All of a queue
have the same time, so the first one is the next to go, and a look costs nothing for those whose
time is not up. A connection that was written to is looked at until its client has taken everything,
a share of these at each tick, so that thousands of readers of one run do not hold up the others.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from reattach.domain.limits import EVICTION_SECONDS, WATCH_ROUND_TICKS
from reattach.http.connection.states import State, Timeouts


class Watched(Protocol):
    """A connection, as the watch knows it."""

    sent_bytes: int
    """Everything that was written to it."""
    taken_bytes: int
    """The part of it that the client had taken when the watch last looked."""
    stuck_since: float | None
    """When the watch last saw that the client took some of what waits, or that some waits."""
    owes: bool
    """The watch looks whether the client takes what was written."""
    half_closed: bool
    """The client sends nothing more."""

    def time_is_up(self) -> None:
        """Leave the state, which the connection has been in for as long as it may be."""

    def take_nothing(self) -> None:
        """Be aborted, because the client has taken nothing for the stall time."""

    def abort(self) -> None:
        """Be aborted."""

    def untaken_bytes(self) -> int:
        """Bytes that were written and that the client has not acknowledged."""

    def is_dead(self) -> bool:
        """Whether the client's side does not exist any more."""


Queue = dict[Watched, float]
"""Connections with their deadlines, in the order of these."""


class Watch:
    """The timer of all connections of a server. ``time`` gives seconds that never go back."""

    def __init__(self, timeouts: Timeouts, time: Callable[[], float] | None = None) -> None:
        self.timeouts: Final = timeouts
        self._time = time or asyncio.get_running_loop().time
        self._queues: dict[State, tuple[Queue, float]] = {
            State.HEAD: ({}, timeouts.head_seconds),
            State.BODY: ({}, timeouts.body_idle_seconds),
            State.IDLE: ({}, timeouts.idle_seconds),
            State.DRAINING: ({}, timeouts.linger_seconds),
        }
        self._owing: set[Watched] = set()
        self._round: list[Watched] = []
        """Those of them that are still to be looked at in this round."""
        self._share = 1
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._time()

    def queue(self, connection: Watched, state: State) -> Queue:
        """Give a connection that is in no queue the time of ``state``; return its queue."""
        queue, seconds = self._queues[state]
        queue[connection] = self._time() + seconds
        if self._timer is None:
            self._wait()
        return queue

    def owe(self, connection: Watched) -> None:
        """Look from now on whether the client takes what is written."""
        connection.owes = True
        self._owing.add(connection)
        if self._timer is None:
            self._wait()

    def forget(self, connection: Watched) -> None:
        self._owing.discard(connection)

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
        """Do what is due."""
        now = self._time()
        for queue, _ in self._queues.values():
            while queue:
                connection, deadline = next(iter(queue.items()))
                if deadline > now:
                    break
                del queue[connection]
                connection.time_is_up()
        if not self._round:
            self._round = list(self._owing)
            self._share = -(-len(self._round) // WATCH_ROUND_TICKS)
        for _ in range(min(self._share, len(self._round))):
            connection = self._round.pop()
            if connection in self._owing and self._is_settled(connection, now):
                connection.owes = False
                self._owing.discard(connection)

    def _is_settled(self, connection: Watched, now: float) -> bool:
        """Whether it need not be looked at any more, until it is written to again."""
        taken_bytes = connection.sent_bytes - connection.untaken_bytes()
        if taken_bytes == connection.sent_bytes:
            connection.taken_bytes, connection.stuck_since = taken_bytes, None
            if not connection.half_closed:
                return True
            if connection.is_dead():
                connection.abort()
                return True
        elif taken_bytes > connection.taken_bytes or connection.stuck_since is None:
            connection.taken_bytes, connection.stuck_since = taken_bytes, now
        elif now - connection.stuck_since >= self.timeouts.stall_seconds:
            connection.take_nothing()
            return True
        return False

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.timeouts.tick_seconds, self._tick)

    def _tick(self) -> None:
        self.look()
        if self._owing or self._round or any(queue for queue, _ in self._queues.values()):
            self._wait()
        else:
            self._timer = None
