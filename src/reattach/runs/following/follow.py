"""Readers of runs: each is a cursor into shared bytes, and one timer serves them all."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import Enum
from typing import Final, Protocol, Self

import structlog

from reattach.domain.clock import SystemClock
from reattach.domain.errors import (
    CursorAheadError,
    LogLostError,
    LogNotFoundError,
    ReattachError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.errors.stores import EventsLostError, LogDamagedError
from reattach.domain.ids import Seq
from reattach.domain.limits import (
    REPLAY_SLICE_BYTES,
    REPLAY_TURN_BYTES,
    TOKEN_EXPIRING_SECONDS,
)
from reattach.log.base import Log, Pieces, Slice, Tail, View
from reattach.log.notifier import Notifier
from reattach.records.base import Target
from reattach.runs.following.lag import LagMeter

logger = structlog.get_logger(__name__)

_SYSTEM_CLOCK: Final = SystemClock()

_PIECES_BYTES: Final = 2 * REPLAY_SLICE_BYTES
"""The most bytes of pieces in one write, which a client that stalls holds in memory."""

__all__ = ["Expiry", "Following", "Target", "Watch", "follow", "gone_error", "remainder"]


class Expiry(Enum):
    """An announcement of the end of a reader's right to read."""

    SOON = "soon"
    OVER = "over"


class Reads(Protocol):
    """The part of a log that a reader needs beside its tail."""

    async def read(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        """Return the frames after ``after_seq``: see ``Log.read``."""

    def pieces(
        self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int
    ) -> Pieces | None:
        """Return some of them if they are in memory: see ``Log.pieces``."""

    def has_pieces(self, run_id: str, after_seq: Seq) -> bool:
        """Whether ``pieces`` would return frames."""


class Following:
    """One reader of one run, made by ``follow``.

    ``cursor`` is the last seq that the reader has got. ``wake`` is called when there may be
    something to do: new events, the end of the log, or a keepalive.

    A reader that has everything and waits may set a ``sink``. New events are passed to it at once,
    and ``wake`` is called only for events that it refuses and for everything else. Neither callback
    may raise or block.
    """

    __slots__ = ("_behind_at", "_first", "_has_spoken", "_log", "_max_events", "_shared", "_tail",
                 "cursor", "expires_at", "expiry", "keepalive_due", "lag", "quiet_since",
                 "released", "revoked", "rotated", "run_id", "sink", "splice", "token_ends_at",
                 "wake")  # fmt: skip

    def __init__(
        self,
        log: Reads,
        shared: AbstractAsyncContextManager[Tail],
        tail: Tail,
        run_id: str,
        *,
        cursor: Seq,
        max_events: int,
    ) -> None:
        self._log = log
        self._shared = shared
        self._tail = tail
        self._max_events = max_events
        self._first: Slice | None = None
        """The first events, if ``prefetch`` has read them and ``read`` has not returned them."""
        self.run_id = run_id
        self.cursor = cursor
        self.wake: Callable[[], None] = _ignore_wake
        self.sink: Callable[[bytes], bool] | None = None
        """Takes events and returns True, or returns False if it cannot take them now."""
        self.splice: Callable[[Slice], bytes] | None = None
        """Encodes events for the sink; None: it takes them as they are in the log."""
        self.keepalive_due = False
        self.released = False
        """The process is shutting down and another one drives the run: follow it there."""
        self.revoked = False
        """The reader's key was revoked, so it may not read on."""
        self.token_ends_at: datetime | None = None
        """The end of the reader's token; None: it has none."""
        self.rotated = False
        """The reader's response has lasted long enough: it ends where it has every event."""
        self.expires_at: datetime | None = None
        """The end of the reader's right to read, if its stream announces it; None: no end."""
        self.expiry: Expiry | None = None
        """The announcement that is due."""
        self.quiet_since: float | None = None
        """When the reader last got something, by the event loop's clock; None while a write is in
        progress, when it needs no keepalive. ``silent_since`` keeps it for a sink."""
        self._has_spoken = False
        """Whether the sink has got something since the last check."""
        self._behind_at: int | None = None
        """The cursor at the last check, if more events were there."""
        self.lag: LagMeter | None = None
        """Measures the lag of this reader, which few have."""
        tail.subscribe(self.on_change)

    async def aclose(self) -> None:
        """Stop the callbacks and release the log. Call it once."""
        self._tail.unsubscribe(self.on_change if self.lag is None else self._on_change_measured)
        await self._shared.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def prefetch(self, first: Slice | None = None) -> None:
        """Read the first events now if only the store has them, so that damage is noticed.

        ``first`` are events from the cursor on that were read already, if any.

        Raises:
            EventsLostError: They are damaged.
            ReattachError: Any error of ``Log.read``.
        """
        if self.cursor + 1 >= self._tail.first_seq:
            return
        if first is not None and first.frames and first.first_seq == self.cursor + 1:
            self._first = first
            return
        try:
            self._first = await self._read_stored()
        except LogDamagedError as error:
            logger.warning("log of a run is damaged", run_id=self.run_id, reason=error.detail)
            raise EventsLostError(self.run_id) from error

    async def _read_stored(self) -> Slice:
        return await self._log.read(
            self.run_id, self.cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=self._max_events
        )

    async def read(self) -> Slice:
        """Return the next events, at most one write of a replay; empty if there are none now.

        Moves the cursor.

        Raises:
            ExpiredError: The events after the cursor were trimmed.
            LogDamagedError: They are damaged.
            StoreUnavailableError: The store does not answer, or the log was lost or deleted.
        """
        piece = self.read_now()
        if piece is None:
            try:
                piece = await self._read_stored()
            except LogNotFoundError as error:
                raise gone_error(self.run_id) from error
            self.cursor = max(self.cursor, piece.last_seq)
        return piece

    def read_now(self) -> Slice | None:
        """Return what ``read`` would, without waiting; None if only the store has it.

        Moves the cursor.
        """
        piece, self._first = self._first, None
        if piece is None:
            if self.cursor + 1 < self._tail.first_seq:
                return None
            piece = self._tail.slice(
                self.cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=self._max_events
            )
        self.cursor = max(self.cursor, piece.last_seq)
        return piece

    def view(self) -> View | None:
        """Return the next events without waiting or copying; None if that is not possible.

        They are a whole turn of a replay: fewer writes wake the client less often, and what it has
        not read yet is in shared memory. Moves the cursor.
        """
        piece = self._tail.view(
            self.cursor, max_bytes=REPLAY_TURN_BYTES, max_events=self._max_events
        )
        if piece is not None:
            self.cursor = piece.last_seq
        return piece

    def pieces(self) -> Pieces | None:
        """Return the next events without waiting if a read brought them along from the store.

        Moves the cursor.
        """
        if self._first is not None or self.cursor + 1 >= self._tail.first_seq:
            return None
        found = self._log.pieces(
            self.run_id, self.cursor, max_bytes=_PIECES_BYTES, max_events=self._max_events
        )
        if found is not None:
            self.cursor = found.last_seq
        return found

    def on_change(self) -> None:
        """Pass new events to the sink, or wake the reader."""
        if self.sink is not None:
            piece = self._tail.latest(self.cursor)
            if (
                piece is not None
                and piece.last_seq - self.cursor <= self._max_events
                and self.sink(piece.frames if self.splice is None else self.splice(piece))
            ):
                self.cursor = piece.last_seq
                self.keepalive_due = False
                self._has_spoken = True
                return
        self.wake()

    def measure(self, lag: LagMeter) -> None:
        """Measure the lag of the events that are sent from now on. Call it once."""
        self._tail.unsubscribe(self.on_change)
        self.lag = lag
        self._tail.subscribe(self._on_change_measured)

    def _on_change_measured(self) -> None:
        self.on_change()
        if self.sink is not None:  # Else it is about to be served by its wake-up.
            self.note_sent()

    def note_sent(self) -> None:
        """Note that everything up to the cursor was written to the socket."""
        if self.lag is not None:
            self.lag.note_sent(self.cursor)

    def revoke(self) -> None:
        """Pass no more events to this reader."""
        self.revoked = True
        self.sink = None
        self.wake()

    def rotate(self) -> None:
        """End the response of this reader, which then asks again from its position."""
        self.rotated = True
        self.wake()

    def look_at_expiry(self, now: datetime) -> None:
        """Wake the reader if an announcement has become due."""
        assert self.expires_at is not None, "only readers with an end are watched for it"
        left_seconds = (self.expires_at - now).total_seconds()
        if left_seconds <= 0:
            due = Expiry.OVER
        elif left_seconds <= TOKEN_EXPIRING_SECONDS:
            due = Expiry.SOON
        else:
            return
        if due is not self.expiry:
            self.expiry = due
            self.wake()

    def silent_since(self, now: float) -> float | None:
        """Return since when the reader has got nothing: ``now`` if its sink got events meanwhile.

        Called once per tick, because a clock per event would cost more than a sink.
        """
        if self._has_spoken:
            self._has_spoken = False
            self.quiet_since = now
        return self.quiet_since

    @property
    def last_seq(self) -> Seq:
        """The last event that is there at present."""
        return self._tail.last_seq

    @property
    def has_more(self) -> bool:
        """Whether ``read`` would return events, or the log has ended."""
        return self._tail.last_seq > self.cursor or self._tail.ended

    @property
    def has_next_in_memory(self) -> bool:
        """Whether ``read_now`` would return events."""
        return self._first is not None or (
            self._tail.first_seq <= self.cursor + 1 <= self._tail.last_seq
        )

    @property
    def has_pieces(self) -> bool:
        """Whether ``pieces`` would return events."""
        return self._log.has_pieces(self.run_id, self.cursor)

    def is_overlooked(self) -> bool:
        """Whether it had events to read at this check and the previous one, and has not moved."""
        behind_at = self.cursor if self.has_more else None
        was_at, self._behind_at = self._behind_at, behind_at
        return behind_at is not None and behind_at == was_at

    @property
    def closed(self) -> bool:
        """The log is closed; an empty ``read`` then means that everything was read."""
        return self._tail.closed

    @property
    def has_ended(self) -> bool:
        """Whether the log is closed, or cannot be followed any longer, so that no events follow."""
        return self._tail.ended

    @property
    def finished(self) -> bool:
        """The log is closed and everything was read."""
        return self._tail.closed and self.cursor >= self._tail.last_seq

    @property
    def failure(self) -> ReattachError | None:
        """The reason why the log cannot be followed any longer, or None."""
        return self._tail.failure

    @property
    def notifier(self) -> Notifier | None:
        """The queue in which the readers of the log are notified; None: they are called at once."""
        return self._tail.notifier


def gone_error(run_id: str) -> StoreUnavailableError:
    """Return the error for a log that is lost or deleted while it is read.

    A new reader learns which.
    """
    return StoreUnavailableError(
        f"The events of {run_id} cannot be followed at present: its log was lost or deleted.",
        remedy="Resume after the last event.",
    )


def _ignore_wake() -> None:
    """Ignore a wake-up: a reader that has not started reads by itself first."""


def remainder(log: Log, run_id: str, cursor: Seq, *, max_events: int) -> Slice | None:
    """Return everything after ``cursor`` of a closed log in memory, if that fits into one write.

    ``first_seq - 1`` of the slice is the effective cursor, as with ``follow``.
    """
    tail = log.closed_tail(run_id)
    return None if tail is None else remainder_of(tail, cursor, max_events=max_events)


def remainder_of(tail: Tail, cursor: Seq, *, max_events: int) -> Slice | None:
    """Return everything after ``cursor`` of a closed tail, if that fits into one write."""
    cursor = Seq(min(max(cursor, 0), tail.last_seq))
    if cursor + 1 < tail.first_seq:
        return None
    piece = tail.slice(cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=max_events)
    return piece if piece.last_seq == tail.last_seq else None


async def follow(
    log: Log,
    run_id: str,
    cursor: Seq,
    *,
    max_events: int,
    ended: bool = False,
    prefetches: bool = True,
) -> Following:
    """Follow a run from ``cursor`` to the end of its log; 0 and less mean from the start.

    ``max_events`` bounds one read; less than 1 counts as 1. In a closed log, a cursor past the end
    counts as the end. ``ended`` says that the run's record has its end, so its log must be closed.
    Without ``prefetches``, damage is noticed by the first read, and nothing is held until then.

    Raises:
        CursorAheadError: The log is open and does not have the event at the cursor yet.
        TrimmedError: The log has no longer all events after the cursor; ``Audit.explain_trimmed``
            knows why.
        EventsLostError: They are damaged.
        LogNotFoundError: There is no log.
        LogLostError: The run has ``ended`` but its log is open.
        StoreUnavailableError: The store does not answer.
    """
    max_events = max(max_events, 1)
    known = None
    if ended and prefetches:
        known = await log.read_closed(
            run_id, Seq(max(cursor, 0)), max_bytes=REPLAY_SLICE_BYTES, max_events=max_events
        )
    shared = log.follow(run_id)
    tail = await shared.__aenter__()
    try:
        cursor = Seq(max(cursor, 0))
        if ended or not log.goes_on_after(run_id, cursor):
            head = await log.head(run_id) if known is None else known.head
            if ended and not head.closed:
                raise LogLostError(run_id, head.last_seq)
            if cursor > head.last_seq and not head.closed:
                raise CursorAheadError(run_id, cursor, head.last_seq, name="starting_after")
            cursor = min(cursor, head.last_seq)
            if cursor + 1 < head.first_seq:
                raise TrimmedError(run_id, head.first_seq)
    except BaseException:
        await shared.__aexit__(*sys.exc_info())
        raise
    following = Following(log, shared, tail, run_id, cursor=cursor, max_events=max_events)
    try:
        if prefetches:
            await following.prefetch(None if known is None else known.piece)
    except BaseException:
        await following.aclose()
        raise
    return following


class Watch:
    """One timer for all readers of the process.

    It wakes readers for keepalives and before their rights expire, and backs up lost wake-ups: in
    each round it wakes every reader that had events in the previous round and has not moved since.
    It never queries the store. ``now`` is the clock of expiries.
    """

    def __init__(
        self, ping_interval_seconds: float, now: Callable[[], datetime] = _SYSTEM_CLOCK.now
    ) -> None:
        self._now = now
        self._expiring: set[Following] = set()
        self._interval_seconds = ping_interval_seconds
        self._round_seconds = min(0.5, ping_interval_seconds / 4)
        self._readers: set[Following] = set()
        self._pinged: set[Following] = set()
        self._task: asyncio.Task[None] | None = None
        self._has_released = False

    def add(self, following: Following, *, pings: bool) -> None:
        """Watch a reader until it is removed. After ``release`` it is released at once."""
        following.released = self._has_released and not following.closed
        following.quiet_since = asyncio.get_running_loop().time()
        self._readers.add(following)
        if pings:
            self._pinged.add(following)
        if following.expires_at is not None:
            self._expiring.add(following)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="watch readers")

    def remove(self, following: Following) -> None:
        self._readers.discard(following)
        self._pinged.discard(following)
        self._expiring.discard(following)

    def release(self) -> None:
        """Release all readers whose log is still open, because this process is about to end."""
        self._has_released = True
        for following in self._readers:
            if not following.closed:
                following.released = True
                following.wake()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._readers:
            await asyncio.sleep(self._round_seconds)
            now = loop.time()
            # A round early rather than late, because proxies cut silent connections.
            due_before = now - self._interval_seconds + self._round_seconds
            for following in self._readers:
                if following.is_overlooked():
                    following.wake()
            expiries_at = self._now()
            for following in self._expiring:
                following.look_at_expiry(expiries_at)
            for following in self._pinged:
                quiet_since = following.silent_since(now)
                if quiet_since is not None and quiet_since <= due_before:
                    following.keepalive_due = True
                    following.wake()
