"""Snapshots of runs, folded once for all who ask for them."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import msgspec

from reattach.domain.errors import LogLostError, LogNotFoundError, StoreUnavailableError
from reattach.domain.errors.stores import EventsLostError, LogDamagedError
from reattach.domain.events import RunStatus
from reattach.domain.ids import RunId, Seq
from reattach.domain.limits import FOLDS_AT_ONCE, FOLDS_BYTES, MAX_CURSOR, MAX_FOLDS
from reattach.log.base import Slice
from reattach.records.base import Run, Target
from reattach.records.records import Records
from reattach.runs.following.follow import Following, Watch
from reattach.runs.snapshot.fold import Fold, settled_items
from reattach.runs.snapshot.sharing import SentSnapshots, Snapshot, SnapshotReader
from reattach.single_flight import SingleFlight
from reattach.wire.sse import split_frames

_NO_END: Final = Seq(MAX_CURSOR)


class _Follow(Protocol):
    """``RunService.follow``."""

    def __call__(
        self, target: Target, cursor: int, *, prefetches: bool
    ) -> Awaitable[Following]: ...


class _Settled(Protocol):
    """``RunService.is_settled_in_time``."""

    def __call__(self, target: Target) -> Awaitable[bool]: ...


class _FoldedRun:
    """The fold of one live run, and the reader that keeps it beside the run's tail."""

    __slots__ = ("fold", "following", "is_kept", "lock", "newest", "newest_round", "rounds",
                 "size_bytes", "users")  # fmt: skip

    def __init__(self) -> None:
        self.fold: Fold | None = None
        self.following: Following | None = None
        self.lock = asyncio.Lock()
        self.rounds = 0
        """How often the newest events were added."""
        self.newest: Snapshot | None = None
        self.newest_round = 0
        """The round that made the newest snapshot, or found nothing to add to it."""
        self.users = 0
        """The calls that are making a snapshot of it."""
        self.is_kept = True
        """Whether the next call finds it. One that is not ends with its last user."""
        self.size_bytes = 0


@dataclass(frozen=True, slots=True)
class FoldLimits:
    """The bounds of the folds that a process keeps."""

    runs: int = MAX_FOLDS
    size_bytes: int = FOLDS_BYTES


class Snapshots:
    """Makes the snapshots of all runs in this process.

    The fold of a live run is kept for the next snapshot, which adds only the events since. It is
    dropped when the run ends, when nobody has asked for the interval of pings, when the process
    drains, and when there are too many. The snapshot of an ended run is read from the records; if
    its conversation was emptied or deleted, it is the fold of its log.
    All who get the snapshot of a run at one event share its bytes.
    """

    def __init__(
        self,
        records: Records,
        watch: Watch,
        follow: _Follow,
        is_settled_in_time: _Settled,
        limits: FoldLimits | None = None,
    ) -> None:
        self._records = records
        self._watch = watch
        self._follow = follow
        self._is_settled_in_time = is_settled_in_time
        self._limits = limits or FoldLimits()
        self._kept: OrderedDict[RunId, _FoldedRun] = OrderedDict()
        """The least recently used first."""
        self._kept_bytes = 0
        self.sent = SentSnapshots()
        self._ended: SingleFlight[RunId, Snapshot] = SingleFlight("snapshot of an ended run")
        self._folding = asyncio.Semaphore(FOLDS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def kept(self) -> int:
        """The number of folds that are kept."""
        return len(self._kept)

    async def begin(
        self, target: Target, *, as_of: Seq | None = None, system_messages: bool = True
    ) -> SnapshotReader:
        """Return a reader of the run's snapshot, to be closed by the caller.

        It is that of the newest event, or of the event ``as_of`` if there is a later one. Without
        ``system_messages`` they are left out, as holders of stream tokens may see it.

        Raises:
            UnavailableError: The snapshots that are being sent fill the memory for them.
            ReattachError: Any error of ``of``.
        """
        snapshot = await (self.of(target) if as_of is None else self._past(target, as_of))
        return self.sent.begin(snapshot if system_messages else snapshot.without_system_messages())

    async def of(self, target: Target) -> Snapshot:
        """Return the run's messages as of its newest event.

        The end of the run is part of it once the run's record says how the run ended. A call that
        is cancelled leaves the fold to the others as far as it got.

        Raises:
            ExpiredError: The log was deleted after its retention, or has lost its first events.
            StoreUnavailableError: A store does not answer, or the end is not recorded yet.
            NotFoundError: The run was deleted meanwhile.
        """
        if target.status.is_active:
            try:
                snapshot = await self._of_live(target)
            except (LogLostError, LogNotFoundError) as lost:
                try:  # A new reader learns what became of the log.
                    snapshot = await self._of_live(target)
                except (LogLostError, LogNotFoundError):
                    raise StoreUnavailableError(
                        f"The events of {target.run_id} cannot be read at present. Try again in a "
                        "moment."
                    ) from lost
            if snapshot is not None:
                return snapshot
            if not await self._is_settled_in_time(target):
                raise StoreUnavailableError(
                    f"The end of {target.run_id} is not recorded yet. Try again in a moment."
                )
        return await self._ended.do(target.run_id, partial(self._of_ended, target))

    async def _of_live(self, target: Target) -> Snapshot | None:
        """Return the snapshot of a run whose log is open, or None if the log is closed.

        Raises the failure of the run's tail.
        """
        folded = self._use(target.run_id)
        rounds_before = folded.rounds
        try:
            async with folded.lock:
                # A round that began after this call has every event that was there at the call. So
                # a crowd of calls, on a run that is being written, costs two rounds.
                if folded.newest is not None and folded.newest_round > rounds_before:
                    return folded.newest
                folded.rounds += 1
                fold, following = await self._open(target, folded)
                async with self._folding:
                    await _advance(fold, following)
                if following.failure is not None:
                    raise following.failure
                if following.closed:
                    return None
                following.quiet_since = asyncio.get_running_loop().time()
                return self._newest(folded, fold)
        finally:
            folded.users -= 1
            if folded.fold is None or folded.following is None or folded.following.has_ended:
                self._drop(target.run_id, folded)
            elif not folded.is_kept:
                self._close(folded)
            self._evict()

    def _newest(self, folded: _FoldedRun, fold: Fold) -> Snapshot:
        """Return the snapshot of the fold as it is now, which is made once for each seq."""
        if folded.newest is None or folded.newest.seq != fold.seq:
            folded.newest = Snapshot(fold.run, RunStatus.RUNNING, None, fold.seq, fold.messages())
            self._note_size(folded, fold.size_bytes)
        folded.newest_round = folded.rounds
        return folded.newest

    def _use(self, run_id: RunId) -> _FoldedRun:
        folded = self._kept.setdefault(run_id, _FoldedRun())
        self._kept.move_to_end(run_id)
        folded.users += 1
        return folded

    async def _open(self, target: Target, folded: _FoldedRun) -> tuple[Fold, Following]:
        """Return the run's fold and its reader; the first caller makes them."""
        if folded.fold is not None and folded.following is not None:
            return folded.fold, folded.following
        run = await self._records.runs.get(target.tenant, target.run_id)
        following = await self._follow(target, 0, prefetches=False)
        folded.fold, folded.following = Fold(run), following
        following.wake = partial(self._on_wake, run.id, folded)
        self._watch.add(following, pings=True)
        return folded.fold, following

    def _on_wake(self, run_id: RunId, folded: _FoldedRun) -> None:
        """Drop the fold if its tail has ended, or if nobody has used it for a while."""
        following = folded.following
        assert following is not None
        is_idle, following.keepalive_due = following.keepalive_due, False
        if is_idle or following.released or following.has_ended:
            # Later, because the watch may be going through its readers.
            asyncio.get_running_loop().call_soon(self._drop, run_id, folded)

    def _note_size(self, folded: _FoldedRun, size_bytes: int) -> None:
        if folded.is_kept:
            self._kept_bytes += size_bytes - folded.size_bytes
            folded.size_bytes = size_bytes

    def _evict(self) -> None:
        """Drop the least recently used folds beyond the limits, except those in use."""
        limits = self._limits
        if len(self._kept) <= limits.runs and self._kept_bytes <= limits.size_bytes:
            return
        for run_id, folded in tuple(self._kept.items()):
            if not folded.users:
                self._drop(run_id, folded)
                if len(self._kept) <= limits.runs and self._kept_bytes <= limits.size_bytes:
                    return

    def _drop(self, run_id: RunId, folded: _FoldedRun) -> None:
        """Keep the fold no longer; no-op if that was done before."""
        if folded.is_kept:
            folded.is_kept = False
            del self._kept[run_id]
            self._kept_bytes -= folded.size_bytes
        self._close(folded)

    def _close(self, folded: _FoldedRun) -> None:
        """Release the run's tail if nobody uses the fold any more."""
        following = folded.following
        if folded.users or following is None:
            return
        folded.fold = folded.following = folded.newest = None
        following.wake = _ignore_wake
        self._watch.remove(following)
        task = asyncio.get_running_loop().create_task(following.aclose())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _of_ended(self, target: Target) -> Snapshot:
        run = await self._records.runs.get(target.tenant, target.run_id)
        following = await self._follow(Target.of(run), MAX_CURSOR, prefetches=False)
        seq = following.cursor
        await following.aclose()
        sent = self.sent.newest(run.id, is_active=False)
        if sent is not None and sent.seq == seq:
            return sent
        kept = await self._records.messages.in_own_thread(run)
        if kept:
            messages = msgspec.json.encode(settled_items(run, kept))
        else:
            messages = await self._fold_log(run, seq)
        return Snapshot(run, run.status, run.stop_reason, seq, messages)

    async def _past(self, target: Target, seq: Seq) -> Snapshot:
        """Return the snapshot of event ``seq``, or of the newest one if that is not later."""
        following = await self._follow(target, 0, prefetches=False)
        last_seq = following.last_seq
        await following.aclose()
        if seq >= last_seq:
            return await self.of(target)
        run = await self._records.runs.get(target.tenant, target.run_id)
        messages = await self._fold_log(run, seq)
        return Snapshot(run, RunStatus.RUNNING, None, seq, messages, is_past=True)

    async def _fold_log(self, run: Run, seq: Seq) -> bytes:
        """Return the messages that the events up to ``seq`` of the run make up."""
        fold = Fold(run)
        async with self._folding:
            following = await self._follow(Target.of(run), 0, prefetches=False)
            async with following:
                while fold.seq < seq and await _add_next(fold, following, seq):
                    pass
                if following.failure is not None:
                    raise following.failure
        return fold.messages()


def _until(piece: Slice, last_seq: Seq) -> Slice:
    """Return the frames of ``piece`` up to ``last_seq``, which are some of them at least."""
    if piece.last_seq <= last_seq:
        return piece
    frames = split_frames(piece.frames)[: last_seq + 1 - piece.first_seq]
    return Slice(piece.first_seq, last_seq, b"".join(frames))


def _ignore_wake() -> None:
    """Ignore a wake-up: the reader is being released."""


async def _advance(fold: Fold, following: Following) -> None:
    """Add the events that are there at present, and let others run in between.

    Stops early if the log is closed, because its end is shown by the records.

    Raises:
        ExpiredError: Events were trimmed, or are damaged.
        StoreUnavailableError: The store does not answer.
    """
    goal = following.last_seq
    while fold.seq < goal and not following.has_ended and await _add_next(fold, following):
        pass


async def _add_next(fold: Fold, following: Following, last_seq: Seq = _NO_END) -> bool:
    """Add one write of a replay up to ``last_seq``, and return whether there was any event."""
    try:
        piece = await following.read()
    except LogDamagedError as error:
        raise EventsLostError(fold.run.id) from error
    if piece.frames:
        fold.add(_until(piece, last_seq))
        await asyncio.sleep(0)
    return bool(piece.frames)
