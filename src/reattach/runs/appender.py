"""How a run's events get into its log: in order, numbered, one append at a time."""

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

    ``put`` numbers and encodes an event at once and returns; whatever has piled up by the end of
    the event loop's turn, or while the last append was under way, makes the next one. An append
    that the store does not take is repeated unchanged for APPEND_RETRY_SECONDS, which can not
    double anything. After that, or when the log refuses (a newer owner), ``failure`` is set,
    ``on_failure`` is called, and every later call raises it.
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
        """An append is under way, or will be by the end of this turn."""
        self._appended: list[bytes] = []
        """The frames of the append under way."""
        self._appends_end = False
        """Whether it closes the log."""
        self._flushed = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        """What the append under way is done by, if by a task."""

    @property
    def is_full(self) -> bool:
        """Whether ``room`` would wait, or raise."""
        return self._pending_bytes > PENDING_APPEND_BYTES or self.failure is not None

    def put(self, events: Sequence[Event]) -> None:
        """Number ``events`` and hand them to the log, all of them or none.

        An event that cannot be encoded uses up no number; its exception is raised. Raises
        LimitExceededError once the log is as large as it may get; ``close`` lets the terminal
        group through.
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
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure

    async def abandon(self) -> None:
        """Stop appending; what is pending is dropped. For an owner that lost its run."""
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _enqueue(self, events: Sequence[Event]) -> None:
        if self.failure is not None or self._abandoned:
            return
        if len(events) == 1:  # As most are.
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
            self._log.after_tick(self._append)

    def _append(self) -> None:
        if self._abandoned:
            return
        self._appended, self._pending, self._pending_bytes = self._pending, [], 0
        self._appends_end = self._closing
        try:
            self._task = self._log.submit(
                self._run_id,
                self._token,
                self._acknowledged_seq + 1,
                self._appended,
                close=self._appends_end,
                done=self._done,
            )
        except Exception as error:  # noqa: BLE001  whoever waits for room has to hear of it
            self._done(error)

    def _done(self, failure: Exception | None) -> None:
        if self._abandoned:
            return
        self._task = None
        if isinstance(failure, StoreUnavailableError):
            repeat = self._repeat(failure)
            self._task = self._loop.create_task(repeat, name=f"append {self._run_id}")
            return
        self._settled(failure)

    async def _repeat(self, failure: StoreUnavailableError) -> None:
        """Try again, until it is clear whether the log has what it was given."""
        refusals = [failure]

        async def append() -> None:
            if refusals:
                raise refusals.pop()
            await self._log.append(
                self._run_id,
                self._token,
                self._acknowledged_seq + 1,
                self._appended,
                close=self._appends_end,
            )

        outcome: Exception | None = None
        try:
            await until_available(self._clock, append)
        except Exception as error:  # noqa: BLE001  as above
            outcome = error
        self._task = None
        self._settled(outcome)

    def _settled(self, failure: Exception | None) -> None:
        """The log has what it was given, or never will."""
        self._flushed.set()
        if failure is not None:
            self.failure = failure
            self._ended.set()
            self._on_failure()
            return
        self._acknowledged_seq += len(self._appended)
        if self._appends_end:
            self._ended.set()
        elif self._pending or self._closing:
            self._append()
        else:
            self._busy = False
