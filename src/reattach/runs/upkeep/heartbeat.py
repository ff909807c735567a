"""The beats of a process, which do not wait for its event loop.

A large body, a long list or a callback of the application can hold the event loop up for seconds.
If the lease ran out meanwhile, other processes would end every run of this one. So the lease is
renewed by a thread with an event loop and a database connection of its own.

A process whose event loop hangs for ever must not keep its runs for ever. The thread asks the event
loop for a sign of life with each beat, and stops beating after LOOP_SILENCE_LEASES without one.
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
"""Leases for which an event loop may hang before its process loses its runs: a minute by default.
Large requests take seconds; a loop that hangs for longer does not come back."""

_JOIN_SECONDS: Final = 20.0
"""How long the thread may take to end; a beat that is under way is bounded."""


@asynccontextmanager
async def heartbeat(runs: RunService, records: Records, clock: Clock) -> AsyncIterator[None]:
    """Renew the lease of this process from a thread, for as long as the context lasts."""
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
        """Beats since the event loop of the process last gave a sign of life."""
        self._stopping = threading.Event()
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End the thread soon. Called in the event loop of the process."""
        self._stopping.set()
        if self._own_loop is not None:
            with suppress(RuntimeError):  # It has ended by itself.
                self._own_loop.call_soon_threadsafe(self._stopped.set)

    def run(self) -> None:
        owners = self._records.owners_apart()
        try:
            asyncio.run(self._beat_always(owners))
        except Exception:
            logger.exception("heartbeat failed")

    async def _beat_always(self, owners: Owners) -> None:
        self._own_loop = asyncio.get_running_loop()
        try:
            while not self._stopping.is_set():
                await self._pause()
                if self._stopping.is_set():
                    return
                if self._has_loop():
                    await self._beat(owners)
        finally:
            await owners.aclose()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._runs.ownership.beat_seconds):
                await self._stopped.wait()

    def _has_loop(self) -> bool:
        """Ask the event loop of the process for a sign of life; whether it gave one lately."""
        most = LOOP_SILENCE_LEASES * BEATS_PER_LEASE
        self._unanswered += 1
        if self._unanswered == most:
            logger.error("event loop hangs, the lease is no longer renewed", beats=most)
        self._call(self._answer)
        return self._unanswered < most

    def _answer(self) -> None:
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
        self._call(lambda: self._hear(owner, beat, asked_at, answered_at))

    def _call(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            self._stopping.set()  # The process ends.

    def _hear(self, owner: str, beat: Beat | None, asked_at: float, answered_at: float) -> None:
        """Take in what came of a beat, in the event loop of the process."""
        self._runs.ownership.note(beat, asked_at, answered_at)
        if beat is not None and not self._stopping.is_set():
            task = self._loop.create_task(self._obey(owner, beat), name="obey a beat")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _obey(self, owner: str, beat: Beat) -> None:
        try:
            await self._runs.apply_beat(owner, beat)
        except ReattachError as error:
            logger.warning("beat not obeyed", reason=error.detail)
        except Exception:
            logger.exception("beat not obeyed")
