"""The only writer of one run's log: it collects frames, appends them and retries."""

import asyncio
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, cast

from reattach.domain.backoff import until_available
from reattach.domain.clock import Clock, SystemClock
from reattach.domain.errors import LimitExceededError, StoreUnavailableError
from reattach.domain.ids import Seq, Token
from reattach.domain.limits import PENDING_APPEND_BYTES, RUN_LOG_BYTES
from reattach.log.commit_times import CommitTimes
from reattach.log.tail import Head
from reattach.meters.meters import Meters, StoreMeter

Done = Callable[[Exception | None], None]
"""Called with None when an operation succeeded, else with its exception. Must not raise."""


_PUT_TIMES: Final = 256
"""The appends whose times are kept for readers that measure their lag."""


class AppendMeter:
    """Counts the appended events of all runs, and measures their appends."""

    __slots__ = ("_bounds", "_counts", "_meters", "_seconds", "_store")

    def __init__(self, meters: Meters, store: StoreMeter) -> None:
        self._meters = meters
        self._store = store
        self._seconds = seconds = store.operation("append")
        self._bounds, self._counts = seconds.bounds, seconds.counts

    def appended(self, events: int, seconds: float) -> None:
        """Count an append and its events."""
        self._meters.events += events
        # ``observe`` without the call: this is done for each event of a slow run.
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds.sum += seconds

    def count(self, events: int) -> None:
        """Count events that were appended without a writer's queue."""
        self._meters.events += events

    def failed(self) -> None:
        """Count an append that the store did not answer."""
        self._store.failed("append")


class RunWriter(ABC):
    """Writes the log of one run for the owner with ``token``. ``Log.open`` returns it.

    ``put`` returns immediately. All frames put in one tick of the event loop, or while an append is
    in flight, make the next append, and only one append is in flight at a time. While the store is
    unavailable the append is retried unchanged for APPEND_RETRY_SECONDS, which duplicates nothing.
    After that, or when the log refuses the append (because of a newer owner), ``failure`` is set,
    ``on_failure`` is called, and ``flush``, ``wait_for_room`` and ``close`` raise ``failure``.

    A backend implements ``append``. Call it only on a writer to which nothing was put. A backend
    that sends the appends of all runs together passes ``after_tick``, which calls its argument at
    the end of the event loop's current tick.
    """

    def __init__(
        self,
        run_id: str,
        token: Token,
        head: Head,
        *,
        after_tick: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.run_id = run_id
        self.token = token
        self.head = head
        """The extent of the log when it was opened."""
        self.last_seq = head.last_seq
        """The seq of the last frame put, whether or not the log has it yet."""
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = _ignore
        """Called once, when ``failure`` is set."""
        self.clock: Clock = SystemClock()
        """Measures how long an append is retried."""
        self.meter: AppendMeter | None = None
        self.put_times: deque[tuple[Seq, float]] | None = None
        """The last seq of recent appends, each with the monotonic time at which its first frame was
        put; None unless a reader measures its lag."""
        self._put_at = 0.0
        self._append_began = 0.0
        self._after_tick = after_tick or asyncio.get_running_loop().call_soon
        self.acknowledged_seq = head.last_seq
        """The seq of the last frame that the log has stored."""
        self._pending: list[bytes] = []
        self._taken_bytes = 0
        """The size of the log without the pending frames."""
        self.is_full = False
        """Whether ``wait_for_room`` would wait or raise."""
        self.commit_times: CommitTimes | None = None
        """Notes the times of the appends, if anybody wants them."""
        self.logged_bytes = 0
        """The size of the log, once ``count_earlier`` was called for a log with events."""
        self._closing = False
        self._abandoned = False
        self._busy = False
        """An append is in flight, or begins at the end of this tick."""
        self._in_flight: list[bytes] = []
        """The frames of the append in flight."""
        self._append_closes = False
        """Whether the append in flight closes the log."""
        self._flushed: asyncio.Event | None = None
        """Set after each append, once something waits for that."""
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        """The task of the append in flight, if it has one."""

    @abstractmethod
    async def append(self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False) -> None:
        """Append ``frames`` from ``first_seq`` on, once, and return when they are durable.

        An append is stored entirely or not at all. With ``close`` the same atomic step closes the
        log. An append that the log already contains (the same frames at the same seqs, and closed
        after the last of them with ``close``) is a retry whose acknowledgement was lost: it
        succeeds without a change. A cancelled append took effect entirely or not at all, and may be
        repeated with the same arguments.

        Raises:
            ValueError: There are no frames and no ``close``.
            FencedError: The token is lower than the log's. Checked first, also for a retry.
            LogClosedError: The log is closed.
            SeqMismatchError: ``first_seq`` is not the log's next seq.
            LogNotFoundError: The log was never opened or was deleted.
            StoreUnavailableError: The store does not answer. The append may have taken place.
        """

    def submit(
        self, first_seq: Seq, frames: Sequence[bytes], *, close: bool = False, done: Done
    ) -> "asyncio.Task[None] | None":
        """Callback variant of ``append``; a backend may avoid one task per append.

        ``done`` is called once, in the event loop, after this method has returned. ``frames`` must
        not change until then. If a task is returned, keep a reference to it; cancelling it cancels
        the append, and ``done`` is not called.
        """
        append = self.append(first_seq, frames, close=close)
        task = asyncio.get_running_loop().create_task(append, name=f"append {self.run_id}")

        def call_done(task: "asyncio.Task[None]") -> None:
            if not task.cancelled():
                done(cast("Exception | None", task.exception()))

        task.add_done_callback(call_done)
        return task

    def keep_put_times(self) -> "deque[tuple[Seq, float]]":
        """Keep ``put_times`` from now on, and return them."""
        if self.put_times is None:
            self.put_times = deque(maxlen=_PUT_TIMES)
        return self.put_times

    @property
    def first_event_at(self) -> datetime | None:
        """When the first event was in the log, if this writer wrote it and notes the times."""
        began_empty = self.head.last_seq < self.head.first_seq
        return self.commit_times.first_at if self.commit_times and began_empty else None

    def put(self, frames: Sequence[bytes]) -> None:
        """Queue ``frames`` for the log, all of them or none. They get the next seqs.

        Raises:
            LimitExceededError: The log has reached its largest size. ``close`` still works.
        """
        if not frames:
            return
        if self.logged_bytes > RUN_LOG_BYTES:
            raise _log_is_full()
        self._enqueue(frames)

    def put_one(self, frame: bytes) -> None:
        """``put`` for one frame."""
        if self.logged_bytes > RUN_LOG_BYTES:
            raise _log_is_full()
        if self.failure is not None or self._abandoned:
            return
        if self.put_times is not None and not self._pending:
            self._put_at = time.monotonic()
        self._pending.append(frame)
        self.last_seq += 1
        self._count(len(frame))

    def count_earlier(self, size_bytes: int) -> None:
        """Count the size of the events that the log had when it was opened."""
        self.logged_bytes += size_bytes
        self._taken_bytes += size_bytes

    async def wait_for_room(self) -> None:
        """Return when the pending frames are below the limit; raise ``failure`` if there is one."""
        while self.failure is None and self.logged_bytes - self._taken_bytes > PENDING_APPEND_BYTES:
            await self._next_append()
        if self.failure is not None:
            raise self.failure

    async def flush(self) -> None:
        """Return when the log has every frame put; raise ``failure`` if there is one."""
        last_seq = self.last_seq
        while self.failure is None and self.acknowledged_seq < last_seq:
            await self._next_append()
        if self.failure is not None:
            raise self.failure

    async def _next_append(self) -> None:
        """Return when the append in flight, or the next one, is settled."""
        if self._flushed is None:
            self._flushed = asyncio.Event()
        self._flushed.clear()
        await self._flushed.wait()

    async def close(self, frames: Sequence[bytes] = ()) -> None:
        """Append the pending frames and then ``frames``, and close the log.

        Returns when that is durable; raises ``failure`` if there is one.
        """
        self._closing = True
        self._enqueue(frames)
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure

    async def abandon(self) -> None:
        """Stop appending, drop the pending frames, and wait for the task of the append to end.

        ``flush`` and ``close`` that still wait never return. Without effect after ``close``.
        """
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _enqueue(self, frames: Sequence[bytes]) -> None:
        if self.failure is not None or self._abandoned:
            return
        if self.put_times is not None and not self._pending:
            self._put_at = time.monotonic()
        self._pending += frames
        self.last_seq += len(frames)
        self._count(sum(map(len, frames)))

    def _count(self, size_bytes: int) -> None:
        """Count frames that were added to the pending ones, and let them be appended."""
        self.logged_bytes += size_bytes
        if self.logged_bytes - self._taken_bytes > PENDING_APPEND_BYTES:
            self.is_full = True
        if not self._busy:
            self._busy = True
            self._after_tick(self._start_append)

    def _start_append(self) -> None:
        if self._abandoned:
            return
        self._in_flight, self._pending = self._pending, []
        self._taken_bytes = self.logged_bytes
        self.is_full = False
        self._append_closes = self._closing
        if self.put_times is not None and self._put_at:
            last_seq = Seq(self.acknowledged_seq + len(self._in_flight))
            self.put_times.append((last_seq, self._put_at))
        if self.meter is not None:
            self._append_began = time.monotonic()
        try:
            self._task = self.submit(
                self.acknowledged_seq + 1,
                self._in_flight,
                close=self._append_closes,
                done=self._on_done,
            )
        except Exception as error:  # noqa: BLE001  the waiters must get it
            self._on_done(error)

    def _on_done(self, failure: Exception | None) -> None:
        if self._abandoned:
            return
        self._task = None
        if failure is None:
            self._note_appended()
        elif isinstance(failure, StoreUnavailableError):
            if self.meter is not None:
                self.meter.failed()
            retry = self._retry(failure)
            self._task = asyncio.get_running_loop().create_task(retry, name=f"append {self.run_id}")
        else:
            self._fail(failure)

    async def _retry(self, failure: StoreUnavailableError) -> None:
        """Retry the append in flight until its outcome is known."""
        earlier = [failure]  # The first attempt has failed already, so the wait comes first.

        async def append() -> None:
            if earlier:
                raise earlier.pop()
            first_seq = self.acknowledged_seq + 1
            await self.append(first_seq, self._in_flight, close=self._append_closes)

        try:
            await until_available(self.clock, append)
        except Exception as error:  # noqa: BLE001  as above
            self._task = None
            self._fail(error)
        else:
            self._task = None
            self._note_appended()

    def _fail(self, failure: Exception) -> None:
        """Note that the append in flight has failed for good."""
        if self._flushed is not None:
            self._flushed.set()
        self.failure = failure
        self.is_full = True
        self._ended.set()
        self.on_failure()

    def _note_appended(self) -> None:
        """Note that the log has the append in flight; start the next one if frames are pending."""
        if self._flushed is not None:
            self._flushed.set()
        if self.meter is not None:
            seconds = time.monotonic() - self._append_began
            self.meter.appended(len(self._in_flight), seconds)
        self.acknowledged_seq += len(self._in_flight)
        if self.commit_times is not None and self._in_flight:
            self.commit_times.add(self.acknowledged_seq)
        if self._append_closes:
            self._ended.set()
        elif self._pending or self._closing:
            self._start_append()
        else:
            self._busy = False


def _log_is_full() -> LimitExceededError:
    return LimitExceededError(
        f"The log of this run has reached the limit of {RUN_LOG_BYTES} bytes. "
        "Send another message to continue in a new run."
    )


def _ignore() -> None:
    """Ignore a failure: ``flush`` and ``close`` raise it."""
