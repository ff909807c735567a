"""Runs that may be what kills their processes, taken up one at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.limits import SUSPECT_LOOK_SECONDS, SUSPECT_SECONDS
from reattach.records.base import Run
from reattach.runs.drivers import Drivers


class Suspects:
    """Takes runs up one after the other, each once the one before it has gone on or ended.

    A run that kills its process then dies alone: those behind it have no attempt yet, so its death
    counts for none of them. ``take_up`` continues or ends a run; it returns the failure of a store,
    and raises nothing.
    """

    def __init__(
        self, drivers: Drivers, take_up: Callable[[Run], Awaitable[StoreUnavailableError | None]]
    ) -> None:
        self._drivers = drivers
        self._take_up = take_up
        self._waiting: dict[str, Run] = {}
        self._work: asyncio.Task[None] | None = None

    def add(self, runs: Iterable[Run]) -> None:
        """Take the runs up soon, in that order, behind those that wait already.

        While a store does not answer, none is; they have to be added again.
        """
        for run in runs:
            self._waiting.setdefault(run.id, run)
        if self._waiting and (self._work is None or self._work.done()):
            self._work = asyncio.create_task(self._take_up_all(), name="suspect runs")

    async def _take_up_all(self) -> None:
        while self._waiting and not self._drivers.open_runs.draining:
            run = next(iter(self._waiting.values()))
            if await self._take_up(run) is not None:
                self._waiting.clear()
                return
            await self._watch(run)
            del self._waiting[run.id]

    async def _watch(self, run: Run) -> None:
        """Wait until the engine has added an event to the run, the run ends, or time is up."""
        clock = self._drivers.clock
        until = clock.monotonic_seconds() + SUSPECT_SECONDS
        while clock.monotonic_seconds() < until:
            driver = self._drivers.open_runs.drivers.get(run.id)
            if driver is None or driver.goes_on:
                return
            await clock.sleep(SUSPECT_LOOK_SECONDS)
