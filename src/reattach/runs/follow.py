"""Readers of runs: a reader is a cursor into shared bytes, and one timer serves them all."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from reattach.domain.errors import CursorAheadError, LogLostError, ReattachError, TrimmedError
from reattach.domain.limits import LOST_LOG_FIRST_SEQ, REPLAY_SLICE_BYTES
from reattach.domain.store_errors import EventsLostError
from reattach.log.base import Log, Slice, Tail, View
from reattach.records.base import Target

__all__ = ["Following", "Target", "Watch", "follow", "remainder"]


class Following:
    """One reader of one run. Made by ``follow``.

    ``cursor`` is the last seq that the reader was given. ``wake`` is called whenever there may be
    something to do: more events, the end, or a keepalive that is due.

    A reader that waits for it, having all that there is, may lend a ``sink``: new events are given
    to it at once, as they come, and ``wake`` is called only for what it does not take and for all
    else. Neither may raise or block.
    """

    __slots__ = ("_behind_at", "_has_spoken", "_log", "_max_events", "_shared", "_tail", "cursor",
                 "keepalive_due", "quiet_since", "released", "revoked", "run_id", "sink",
                 "wake")  # fmt: skip

    def __init__(
        self,
        log: Log,
        shared: AbstractAsyncContextManager[Tail],
        tail: Tail,
        run_id: str,
        *,
        cursor: int,
        max_events: int,
    ) -> None:
        self._log = log
        self._shared = shared
        self._tail = tail
        self._max_events = max_events
        self.run_id = run_id
        self.cursor = cursor
        self.wake: Callable[[], None] = _nobody_waits
        self.sink: Callable[[bytes], bool] | None = None
        """Takes events, or says that it can not now."""
        self.keepalive_due = False
        self.released = False
        """The process is going away, and the run is another's: to be followed there."""
        self.revoked = False
        """The reader may not read on: its key is over."""
        self.quiet_since: float | None = None
        """When the reader was last sent something, by the event loop's clock; None while a
        write is under way, when there is nothing to keep alive. A sink is looked after by
        ``silent_since``."""
        self._has_spoken = False
        """Whether the sink was given something since it was last looked after."""
        self._behind_at: int | None = None
        """Its cursor when it was last looked after, if there was more then."""
        tail.subscribe(self.changed)

    async def aclose(self) -> None:
        """Be called no longer, and let go of the log. To be called once."""
        self._tail.unsubscribe(self.changed)
        await self._shared.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def read(self) -> Slice:
        """The next events, at most one write of a replay; empty if there are none at present.

        Moves the cursor. Raises ExpiredError if the events after the cursor were trimmed away.
        """
        piece = self.read_now()
        if piece is None:
            piece = await self._log.read(
                self.run_id,
                self.cursor,
                max_bytes=REPLAY_SLICE_BYTES,
                max_events=self._max_events,
            )
            self.cursor = max(self.cursor, piece.last_seq)
        return piece

    def read_now(self) -> Slice | None:
        """What ``read`` gives, without waiting; None if the store has to be asked for it."""
        if self.cursor + 1 < self._tail.first_seq:
            return None
        piece = self._tail.slice(
            self.cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=self._max_events
        )
        self.cursor = max(self.cursor, piece.last_seq)
        return piece

    def view(self) -> View | None:
        """What ``read`` gives, without waiting and without a copy, where that is possible.

        Moves the cursor.
        """
        piece = self._tail.view(
            self.cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=self._max_events
        )
        if piece is not None:
            self.cursor = piece.last_seq
        return piece

    def changed(self) -> None:
        """Something happened to the tail: give the sink what is new, or wake the reader."""
        if self.sink is not None:
            piece = self._tail.latest(self.cursor)
            if (
                piece is not None
                and piece.last_seq - self.cursor <= self._max_events
                and self.sink(piece.frames)
            ):
                self.cursor = piece.last_seq
                self.keepalive_due = False
                self._has_spoken = True
                return
        self.wake()

    def revoke(self) -> None:
        """Give this reader nothing more."""
        self.revoked = True
        self.sink = None
        self.wake()

    def silent_since(self, now: float) -> float | None:
        """``quiet_since``, to be asked once a tick: a clock would cost more than a sink."""
        if self._has_spoken:
            self._has_spoken = False
            self.quiet_since = now
        return self.quiet_since

    @property
    def has_more(self) -> bool:
        """Whether ``read`` would give events, or the log has ended."""
        return self._tail.last_seq > self.cursor or self._tail.ended

    def is_overlooked(self) -> bool:
        """Whether it has more, and is where it was when this was last asked, with more then too."""
        behind_at = self.cursor if self.has_more else None
        was_at, self._behind_at = self._behind_at, behind_at
        return behind_at is not None and behind_at == was_at

    @property
    def closed(self) -> bool:
        """The log is closed; with an empty ``read`` that means that all of it was given."""
        return self._tail.closed

    @property
    def finished(self) -> bool:
        """The log is closed, and all of it was given."""
        return self._tail.closed and self.cursor >= self._tail.last_seq

    @property
    def failure(self) -> ReattachError | None:
        """Why the log can not be followed any longer from here, if so."""
        return self._tail.failure


def _nobody_waits() -> None:
    """A reader that has not begun looks for itself."""


def remainder(log: Log, run_id: str, cursor: int, *, max_events: int) -> Slice | None:
    """What a reader at ``cursor`` gets of a closed log that is in memory, if that is one write.

    ``first_seq - 1`` is the cursor at which it begins, as ``follow`` would.
    """
    tail = log.closed_tail(run_id)
    if tail is None:
        return None
    cursor = min(max(cursor, 0), tail.last_seq)
    if cursor + 1 < tail.first_seq:
        return None
    piece = tail.slice(cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=max_events)
    return piece if piece.last_seq == tail.last_seq else None


async def follow(
    log: Log, run_id: str, cursor: int, *, max_events: int, ended: bool = False
) -> Following:
    """Follow a run from ``cursor`` (0: from its start; negative counts as 0), until it is closed.

    ``max_events`` bounds the events of one read; less than 1 counts as 1. A cursor past the end of
    a closed log is at its end. Raises CursorAheadError if an open log does not have the event at
    the cursor, ExpiredError if what follows the cursor was trimmed away or lost, and
    LogNotFoundError if there is no log. ``ended``: the run's record says how it ended. A log that
    is open all the same has lost its end: LogLostError.
    """
    shared = log.follow(run_id)
    tail = await shared.__aenter__()
    try:
        head = await log.head(run_id)
        if ended and not head.closed:
            raise LogLostError(run_id, head.last_seq)
        cursor = max(cursor, 0)
        if cursor > head.last_seq and not head.closed:
            raise CursorAheadError(run_id, cursor, head.last_seq)
        cursor = min(cursor, head.last_seq)
        if cursor + 1 < head.first_seq:
            is_lost = head.first_seq >= LOST_LOG_FIRST_SEQ
            raise (EventsLostError if is_lost else TrimmedError)(run_id, head.first_seq)
    except BaseException:
        await shared.__aexit__(*sys.exc_info())
        raise
    return Following(log, shared, tail, run_id, cursor=cursor, max_events=max(max_events, 1))


class Watch:
    """One timer for all readers of the process.

    It tells a reader when a keepalive is due, and is the net under wake-ups: once a tick it looks
    whether a reader has had more than it was woken for since the last one; one that has it only
    now is about to be told. Neither touches the store.
    """

    def __init__(self, ping_interval_seconds: float) -> None:
        self._interval_seconds = ping_interval_seconds
        self._tick_seconds = min(0.5, ping_interval_seconds / 4)
        self._readers: set[Following] = set()
        self._pinged: set[Following] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, following: Following, *, pings: bool) -> None:
        """Watch over a reader, until it is removed."""
        following.quiet_since = asyncio.get_running_loop().time()
        self._readers.add(following)
        if pings:
            self._pinged.add(following)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tick(), name="watch readers")

    def remove(self, following: Following) -> None:
        self._readers.discard(following)
        self._pinged.discard(following)

    def release(self) -> None:
        """Let go of the readers whose log is still open: this process is about to end."""
        for following in self._readers:
            if not following.closed:
                following.released = True
                following.wake()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while self._readers:
            await asyncio.sleep(self._tick_seconds)
            now = loop.time()
            # A tick too early rather than too late: what cuts silent connections counts too.
            due_before = now - self._interval_seconds + self._tick_seconds
            for following in self._readers:
                if following.is_overlooked():
                    following.wake()
            for following in self._pinged:
                quiet_since = following.silent_since(now)
                if quiet_since is not None and quiet_since <= due_before:
                    following.keepalive_due = True
                    following.wake()
