"""The heartbeat: renews the lease of a process independently of its event loop.

A large body, a long list or a callback of the application can block the event loop for seconds. If
the lease ran out meanwhile, other processes would end every run of this one. A thread with its own
event loop and database connection therefore renews it.

A process whose event loop hangs forever must not keep its runs. The thread asks the event loop for
a sign of life with each beat, and stops after LOOP_SILENCE_LEASES without one.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.limits import BEATS_PER_LEASE
from reattach.records.base import Beat
from reattach.records.records import Records
from reattach.records.runs.owners import Owners
from reattach.runs.service import RunService

logger = structlog.get_logger(__name__)

LOOP_SILENCE_LEASES: Final = 4
"""The leases for which an event loop may hang before its process loses its runs: a minute by
default. Large requests take seconds; a loop that hangs for longer does not recover."""

_JOIN_SECONDS: Final = 20.0
"""The time for the thread to end; a beat in progress is bounded."""


@asynccontextmanager
async def heartbeat(runs: RunService, records: Records, clock: Clock) -> AsyncIterator[None]:
    """Renew the lease of this process from a thread while the context lasts."""
    thread = _Heartbeat(runs, records, clock)
    thread.start()
    try:
        yield
    finally:
        thread.stop()
        await asyncio.to_thread(thread.join, _JOIN_SECONDS)


class _Heartbeat(threading.Thread):
    def __init__(self, runs: RunService, records: Records, clock: Clock) -> None:
        super().__init__(name="reattach-heartbeat", daemon=True)
        self._runs = runs
        self._records = records
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        """Beats since the last sign of life of the process's event loop."""
        self._stopping = threading.Event()
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """End the thread soon. Call it in the event loop of the process."""
        self._stopping.set()
        if self._own_loop is not None:
            with suppress(RuntimeError):  # It has ended by itself.
                self._own_loop.call_soon_threadsafe(self._wake.set)

    def run(self) -> None:
        owners = self._records.owners_apart()
        try:
            asyncio.run(self._beat_until_stopped(owners))
        except Exception:
            logger.exception("heartbeat failed")

    async def _beat_until_stopped(self, owners: Owners) -> None:
        self._own_loop = asyncio.get_running_loop()
        try:
            while not self._stopping.is_set():
                await self._pause()
                if self._stopping.is_set():
                    return
                if self._loop_responds():
                    await self._beat(owners)
        finally:
            await owners.aclose()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._runs.ownership.beat_seconds):
                await self._wake.wait()

    def _loop_responds(self) -> bool:
        """Ask the process's event loop for a sign of life; return whether it gave one recently."""
        most = LOOP_SILENCE_LEASES * BEATS_PER_LEASE
        self._unanswered += 1
        if self._unanswered == most:
            logger.error("event loop hangs, the lease is no longer renewed", beats=most)
        self._call_in_process_loop(self._note_sign_of_life)
        return self._unanswered < most

    def _note_sign_of_life(self) -> None:
        self._unanswered = 0

    async def _beat(self, owners: Owners) -> None:
        owner = self._runs.ownership.owner
        asked_at = self._clock.monotonic_seconds()
        beat: Beat | None = None
        try:
            beat = await owners.beat(owner)
        except ReattachError as error:
            logger.warning("beat failed", reason=error.detail)
        except Exception:
            logger.exception("beat failed")
        answered_at = self._clock.monotonic_seconds()
        self._call_in_process_loop(lambda: self._receive_beat(owner, beat, asked_at, answered_at))

    def _call_in_process_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            self._stopping.set()  # The process ends.

    def _receive_beat(
        self, owner: str, beat: Beat | None, asked_at: float, answered_at: float
    ) -> None:
        """Record the outcome of a beat and apply it, in the event loop of the process."""
        self._runs.ownership.record_beat(beat, asked_at, answered_at)
        if beat is not None and not self._stopping.is_set():
            task = self._loop.create_task(self._apply_beat(owner, beat), name="apply beat")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _apply_beat(self, owner: str, beat: Beat) -> None:
        try:
            await self._runs.apply_beat(owner, beat)
        except ReattachError as error:
            logger.warning("beat not applied", reason=error.detail)
        except Exception:
            logger.exception("beat not applied")
