"""Appending a run's events to its log."""

import asyncio
from collections.abc import Callable, Sequence

from reattach.domain.clock import Clock
from reattach.domain.errors import LimitExceededError, StoreUnavailableError
from reattach.domain.events import Event
from reattach.domain.limits import PENDING_APPEND_BYTES, RUN_LOG_BYTES
from reattach.log.base import Log
from reattach.runs.retry import until_available
from reattach.wire.letta import Encoder


class Appender:
    """The only writer of one run's log.

    ``put`` numbers and encodes an event and returns immediately. All events put in one tick of the
    event loop, or while an append is in flight, make the next append, and only one append is in
    flight at a time. While the store is unavailable the append is retried unchanged for
    APPEND_RETRY_SECONDS, which duplicates nothing. After that, or when the log refuses the append
    (because of a newer owner), ``failure`` is set, ``on_failure`` is called, and ``flush``,
    ``wait_for_room`` and ``close`` raise ``failure``.
    """

    def __init__(
        self,
        log: Log,
        run_id: str,
        token: int,
        *,
        last_seq: int,
        clock: Clock,
        on_failure: Callable[[], None],
    ) -> None:
        self.last_seq = last_seq
        """The seq of the last event put, whether or not the log has it yet."""
        self.failure: Exception | None = None
        self._log = log
        self._run_id = run_id
        self._token = token
        self._clock = clock
        self._on_failure = on_failure
        self._encode = Encoder(run_id).encode
        self._loop = asyncio.get_running_loop()
        self._acknowledged_seq = last_seq
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._total_bytes = 0
        self._closing = False
        self._abandoned = False
        self._busy = False
        """An append is in flight, or begins at the end of this tick."""
        self._in_flight: list[bytes] = []
        """The frames of the append in flight."""
        self._append_closes = False
        """Whether the append in flight closes the log."""
        self._flushed = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        """The task of the append in flight, if it has one."""

    @property
    def is_full(self) -> bool:
        """Whether ``wait_for_room`` would wait or raise."""
        return self._pending_bytes > PENDING_APPEND_BYTES or self.failure is not None

    def put(self, events: Sequence[Event]) -> None:
        """Number and encode ``events`` and queue them for the log, all of them or none.

        If an event cannot be encoded, its exception is raised and no seq is used.

        Raises:
            LimitExceededError: the log has reached its largest size. ``close`` still works.
        """
        if not events:
            return
        if self._total_bytes > RUN_LOG_BYTES:
            raise LimitExceededError(
                f"The log of this run has reached the limit of {RUN_LOG_BYTES} bytes. "
                "Send another message to continue in a new run."
            )
        self._enqueue(events)

    async def wait_for_room(self) -> None:
        """Return when the pending frames are below the limit; raise ``failure`` if there is one."""
        while self.failure is None and self._pending_bytes > PENDING_APPEND_BYTES:
            self._flushed.clear()
            await self._flushed.wait()
        if self.failure is not None:
            raise self.failure

    async def flush(self) -> None:
        """Return when the log has every event put; raise ``failure`` if there is one."""
        last_seq = self.last_seq
        while self.failure is None and self._acknowledged_seq < last_seq:
            self._flushed.clear()
            await self._flushed.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self, events: Sequence[Event]) -> None:
        """Append the pending events and then ``events``, and close the log.

        Returns when that is durable; raises ``failure`` if there is one.
        """
        self._closing = True
        self._enqueue(events)
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure

    async def abandon(self) -> None:
        """Stop appending and drop the pending events. For an owner that lost its run."""
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _enqueue(self, events: Sequence[Event]) -> None:
        if self.failure is not None or self._abandoned:
            return
        if len(events) == 1:  # The most frequent case by far.
            frame = self._encode(events[0], self.last_seq + 1)
            self._pending.append(frame)
            size_bytes = len(frame)
        else:
            frames = [self._encode(one, seq) for seq, one in enumerate(events, self.last_seq + 1)]
            self._pending += frames
            size_bytes = sum(map(len, frames))
        self.last_seq += len(events)
        self._pending_bytes += size_bytes
        self._total_bytes += size_bytes
        if not self._busy:
            self._busy = True
            self._log.after_tick(self._start_append)

    def _start_append(self) -> None:
        if self._abandoned:
            return
        self._in_flight, self._pending, self._pending_bytes = self._pending, [], 0
        self._append_closes = self._closing
        try:
            self._task = self._log.submit(
                self._run_id,
                self._token,
                self._acknowledged_seq + 1,
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
        if isinstance(failure, StoreUnavailableError):
            retry = self._retry(failure)
            self._task = self._loop.create_task(retry, name=f"append {self._run_id}")
            return
        self._finish_append(failure)

    async def _retry(self, failure: StoreUnavailableError) -> None:
        """Retry the append in flight until its outcome is known."""
        refusals = [failure]

        async def append() -> None:
            if refusals:
                raise refusals.pop()
            await self._log.append(
                self._run_id,
                self._token,
                self._acknowledged_seq + 1,
                self._in_flight,
                close=self._append_closes,
            )

        outcome: Exception | None = None
        try:
            await until_available(self._clock, append)
        except Exception as error:  # noqa: BLE001  as above
            outcome = error
        self._task = None
        self._finish_append(outcome)

    def _finish_append(self, failure: Exception | None) -> None:
        """Settle the append in flight, and start the next one if events are pending."""
        self._flushed.set()
        if failure is not None:
            self.failure = failure
            self._ended.set()
            self._on_failure()
            return
        self._acknowledged_seq += len(self._in_flight)
        if self._append_closes:
            self._ended.set()
        elif self._pending or self._closing:
            self._start_append()
        else:
            self._busy = False
