"""How a run's events get into its log: in order, numbered, one append at a time."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from reattach.clock import Clock
from reattach.errors import LimitExceededError
from reattach.events import Event
from reattach.limits import PENDING_APPEND_BYTES, RUN_LOG_BYTES
from reattach.log.base import Log
from reattach.runs.patience import patiently
from reattach.wire import letta


class Appender:
    """The only writer of one run's log.

    ``put`` numbers and encodes an event at once and returns; whatever has piled up while the
    last append was under way makes the next one. An append that the store does not take is
    repeated unchanged for APPEND_RETRY_SECONDS, which can not double anything. After that, or
    when the log refuses (a newer owner), ``failure`` is set, ``on_failure`` is called, and
    every later call raises it.
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
        """The number of the last event that was put, whether or not the log has it."""
        self._log = log
        self._run_id = run_id
        self._token = token
        self._clock = clock
        self._on_failure = on_failure
        self._acknowledged_seq = last_seq
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._total_bytes = 0
        self._closing = False
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._task: asyncio.Task[None] | None = None
        self.failure: Exception | None = None

    def put(self, events: Sequence[Event]) -> None:
        """Number ``events`` and hand them to the log.

        Raises LimitExceededError once the log is as large as it may get; the terminal group is
        let through by ``close``.
        """
        if not events:
            return
        if self._total_bytes > RUN_LOG_BYTES:
            raise LimitExceededError(
                f"The log of a run may hold {RUN_LOG_BYTES} bytes; this one has reached that."
            )
        self._enqueue(events)

    async def room(self) -> None:
        """Return when little enough is pending; raise ``failure`` if there is one."""
        while self.failure is None and self._pending_bytes > PENDING_APPEND_BYTES:
            self._flushed.clear()
            await self._flushed.wait()
        if self.failure is not None:
            raise self.failure

    async def flush(self) -> None:
        """Return when the log holds all that was put; raise ``failure`` if there is one."""
        last_seq = self.last_seq
        while self.failure is None and self._acknowledged_seq < last_seq:
            self._flushed.clear()
            await self._flushed.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self, events: Sequence[Event]) -> None:
        """Append what is pending and then ``events`` as the last ones, and close the log.

        Returns when the log holds them. Raises ``failure``.
        """
        self._closing = True
        self._enqueue(events)
        assert self._task is not None
        await self._task
        if self.failure is not None:
            raise self.failure

    async def abandon(self) -> None:
        """Stop appending; what is pending is dropped. For an owner that lost its run."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _enqueue(self, events: Sequence[Event]) -> None:
        if self.failure is not None:
            return
        for event in events:
            self.last_seq += 1
            frame = letta.encode(event, self.last_seq, self._run_id)
            self._pending.append(frame)
            self._pending_bytes += len(frame)
            self._total_bytes += len(frame)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._append_all(), name=f"append {self._run_id}")

    async def _append_all(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                frames, self._pending, self._pending_bytes = self._pending, [], 0
                close = self._closing
                last_seq = self.last_seq
                await self._append(last_seq - len(frames) + 1, frames, close)
                self._acknowledged_seq = last_seq
                self._flushed.set()
                if close:
                    return
        except Exception as error:  # noqa: BLE001  whoever waits for room has to hear of it
            self.failure = error
            self._flushed.set()
            self._on_failure()

    async def _append(self, first_seq: int, frames: list[bytes], close: bool) -> None:
        append = partial(
            self._log.append, self._run_id, self._token, first_seq, frames, close=close
        )
        await patiently(self._clock, append)
