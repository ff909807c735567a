"""The frames of one run in one dialect, beside the tail of the run."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final

import structlog

from reattach.domain.errors import ReattachError
from reattach.domain.errors.stores import EventsLostError, LogDamagedError
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.limits import REPLAY_SLICE_BYTES, REPLAY_SLICE_EVENTS, TRANSLATION_BYTES
from reattach.log.base import Slice, Tail
from reattach.records.base import Target
from reattach.runs.following.follow import Following, Watch
from reattach.runs.translation.frames import Translator
from reattach.wire.dialects.dialect import Fold

logger = structlog.get_logger(__name__)

Follow = Callable[[Target, int], Awaitable[Following]]
"""Follows a run of this process or another one from a cursor; ``RunService.follow``."""

_FAULT: Final = ReattachError("The run cannot be shown in this form.")

MAX_REREADERS: Final = 64
"""Readers far behind a long run for which the state at their position is kept."""


class Translation:
    """The list of a run's frames in a dialect, as far as the run has got.

    Its newest frames are in ``tail``, numbered from 1 by their position in the list, so readers
    follow it as they follow a log. Frames before the tail are computed again from the log, for
    readers that are far behind. While it has readers it is fed by the tail of the run.
    """

    def __init__(
        self,
        target: Target,
        make: Callable[[], Translator],
        follow: Follow,
        watch: Watch,
    ) -> None:
        self.target = target
        self.tail = Tail()
        self.users = 0
        """The readers, and those that are about to become one."""
        self._make = make
        self._follow = follow
        self._watch = watch
        self._translator = make()
        self._source: Following | None = None
        self._opening = asyncio.Lock()
        self._feeding: asyncio.Task[None] | None = None
        self._rereaders: OrderedDict[Seq, _Rereader] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the frames and of the state."""
        return self.tail.size_bytes + self._translator.size_bytes

    @property
    def fold(self) -> Fold:
        """The state of the dialect at the newest event that was translated."""
        return self._translator.fold

    @property
    def is_whole(self) -> bool:
        """Whether the run has ended and all its frames are in memory."""
        return self.tail.closed and self.tail.first_seq == FIRST_SEQ

    async def open(self) -> None:
        """Follow the run, and return when all its events until now are translated.

        Raises:
            ReattachError: Any error of ``RunService.follow``, such as ExpiredError for a run whose
                first events are gone.
        """
        async with self._opening:
            if self._source is not None or self.tail.closed:
                return
            if self.tail.failure is not None:  # A new reader learns what became of the log.
                self.tail = self.tail.replacement(FIRST_SEQ)
                self._translator = self._make()
            source = await self._follow(self.target, self._translator.seq)
            self._source = source
            self.tail.notifier = source.notifier  # One queue for readers of all forms.
            self._watch.add(source, pings=False)
            self._extend(self._translator.begin())
            try:
                await self._catch_up(source)
            except BaseException:
                await self._let_go()
                raise
            source.wake = self._on_wake
            source.sink = None
            if not self._note_end(source):
                self._wait(source)

    async def close(self) -> None:
        """Stop following the run, unless somebody uses it by now.

        ``open`` goes on from the same event.
        """
        async with self._opening:
            if not self.users:
                await self._let_go()

    async def _let_go(self) -> None:
        feeding, self._feeding = self._feeding, None
        if feeding is not None:
            feeding.cancel()
            await asyncio.wait({feeding})
        source, self._source = self._source, None
        if source is not None:
            source.sink = None
            self._watch.remove(source)
            await source.aclose()

    # Feeding from the log.

    async def _catch_up(self, source: Following) -> None:
        """Translate the events that are there, and let others run in between."""
        while True:
            try:
                piece = await source.read()
            except LogDamagedError as error:
                raise EventsLostError(self.target.run_id) from error
            if not piece.frames:
                return
            self._extend(self._translator.translate(piece), close=source.finished)
            await asyncio.sleep(0)

    def _extend(self, frames: Sequence[bytes], *, close: bool = False) -> None:
        if frames or (close and not self.tail.closed):
            self.tail.extend(frames, close=close)
            if self.tail.size_bytes > TRANSLATION_BYTES:
                self._trim()

    def _trim(self) -> None:
        """Forget the older half of the frames; the log still has their events."""
        tail = self.tail
        ends = tail.ends(tail.first_seq, tail.last_seq)
        half = next(n for n, end in enumerate(ends) if end >= tail.size_bytes // 2)
        tail.trim(Seq(tail.first_seq + half))

    def _wait(self, source: Following) -> None:
        """Wait for further events without a task."""
        source.splice = self._take
        source.sink = _always

    def _take(self, piece: Slice) -> bytes:
        """Translate events that were added to the run's tail. Nothing is sent from here."""
        try:
            self._extend(self._translator.translate(piece))
        except Exception:  # The writer of the run must not suffer from it.
            logger.exception("translation failed", run_id=self.target.run_id)
            self.tail.fail(_FAULT)
        return b""

    def _on_wake(self) -> None:
        source = self._source
        if source is None or (self._feeding is not None and not self._feeding.done()):
            return
        source.sink = None
        self._feeding = asyncio.get_running_loop().create_task(self._feed(source))

    async def _feed(self, source: Following) -> None:
        try:
            while not self._note_end(source):
                await self._catch_up(source)
                if not source.has_more:
                    self._wait(source)
                    return
        except ReattachError as error:
            self.tail.fail(error)
        except Exception:
            logger.exception("translation failed", run_id=self.target.run_id)
            self.tail.fail(_FAULT)

    def _note_end(self, source: Following) -> bool:
        """Close or fail the tail if the run's has ended, and return whether it has."""
        if source.failure is not None:
            self.tail.fail(source.failure)
        elif source.finished and not self.tail.closed:
            self._extend([], close=True)
        return self.tail.ended

    # Reading.

    def reader(
        self, cursor: Seq, release: AbstractAsyncContextManager[object], *, max_events: int
    ) -> Following:
        """Return a reader from ``cursor`` on, or from the end if the cursor is beyond it."""
        cursor = Seq(min(max(cursor, 0), self.tail.last_seq))
        return Following(
            self,
            _Shared(self.tail, release),
            self.tail,
            self.target.run_id,
            cursor=cursor,
            max_events=max(max_events, 1),
        )

    def pieces(self, run_id: str, after_seq: Seq, *, max_bytes: int, max_events: int) -> None:
        """Return None: nothing is computed ahead. See ``Log.pieces``."""

    def has_pieces(self, run_id: str, after_seq: Seq) -> bool:  # noqa: ARG002
        return False

    async def read(
        self,
        run_id: str,
        after_seq: Seq,
        *,
        max_bytes: int = REPLAY_SLICE_BYTES,
        max_events: int = REPLAY_SLICE_EVENTS,
    ) -> Slice:
        """Return frames from ``after_seq + 1`` on that the tail no longer has: see ``Log.read``.

        They are computed from the log. A reader that goes on where it stopped costs each event
        once.

        Raises:
            ReattachError: Any error of reading the log.
        """
        assert run_id == self.target.run_id
        reader = self._rereaders.pop(after_seq, None) or _Rereader(self._make())
        source = await self._follow(self.target, reader.translator.seq)
        async with source:
            piece = await reader.read(source, after_seq, max_bytes, max_events)
        self._rereaders[piece.last_seq] = reader
        if len(self._rereaders) > MAX_REREADERS:
            self._rereaders.popitem(last=False)
        return piece


class _Rereader:
    """The state of a dialect at a position that a reader has reached."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self._position = Seq(0)
        self._held: list[bytes] = translator.begin()
        """Frames after the position that were computed and not returned yet."""

    async def read(
        self, source: Following, after_seq: Seq, max_bytes: int, max_events: int
    ) -> Slice:
        """Return frames after ``after_seq``, reading events from ``source``."""
        while self._position + len(self._held) <= after_seq or not self._held:
            self._skip(after_seq)
            piece = await source.read()
            if not piece.frames:
                return Slice(Seq(after_seq + 1), after_seq, b"")
            self._held.extend(self.translator.translate(piece))
            await asyncio.sleep(0)
        self._skip(after_seq)
        taken, size_bytes = 0, 0
        for frame in self._held[:max_events]:
            if taken and size_bytes + len(frame) > max_bytes:
                break
            taken, size_bytes = taken + 1, size_bytes + len(frame)
        frames = b"".join(self._held[:taken])
        del self._held[:taken]
        first_seq = Seq(self._position + 1)
        self._position = Seq(self._position + taken)
        return Slice(first_seq, self._position, frames)

    def _skip(self, after_seq: Seq) -> None:
        """Drop the held frames up to ``after_seq``."""
        drop = min(max(after_seq - self._position, 0), len(self._held))
        del self._held[:drop]
        self._position = Seq(self._position + drop)


class _Shared:
    """The tail of a translation as a reader shares it; the end of the context releases it."""

    def __init__(self, tail: Tail, release: AbstractAsyncContextManager[object]) -> None:
        self._tail = tail
        self._release = release

    async def __aenter__(self) -> Tail:
        return self._tail

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._release.__aexit__(kind, error, trace)


def _always(_: bytes) -> bool:
    """Take everything: the events were translated while they were encoded for this sink."""
    return True
