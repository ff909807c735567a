"""The runs that a process works on, and the sends that are about to become some."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from reattach.domain.ids import TenantId
from reattach.domain.limits import APPEND_RETRY_SECONDS, ENGINE_STOP_SECONDS
from reattach.runs.driver import RunDriver
from reattach.runs.endings import DRAINED, Ending

logger = structlog.get_logger(__name__)


class OpenRuns:
    """Drivers by the ids of their runs, each with its task.

    ``draining`` is set once no new run is taken. A send that was let in before that may still
    begin one, so a drain waits for sends as well as for runs.
    """

    def __init__(self) -> None:
        self.draining = False
        self.drivers: dict[str, RunDriver] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._sends = 0
        self._changed = asyncio.Event()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Hold a drain up until the send has begun its run, or failed."""
        self._sends += 1
        try:
            yield
        finally:
            self._sends -= 1
            self._changed.set()

    def begin(self, driver: RunDriver, work: Coroutine[Any, Any, None]) -> None:
        """Let ``work`` go on as a task of its own; it forgets the driver when it ends.

        A sender that is cancelled leaves no run that nobody works on.
        """
        run_id = driver.run.id
        self.drivers[run_id] = driver
        task = asyncio.create_task(work, name=f"run {run_id}")
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._changed.set()

    def of(self, tenant: TenantId) -> int:
        """Count the runs of a tenant that are open, or about to be."""
        return sum(driver.run.tenant == tenant for driver in self.drivers.values())

    def end(self, run_id: str, ending: Ending) -> bool:
        """End the run if it is worked on here, and return whether it is."""
        driver = self.drivers.get(run_id)
        if driver is not None:
            driver.end(ending)
        return driver is not None

    async def drain(self, seconds: float) -> None:
        """Take no new runs, let the open ones finish for ``seconds``, then end them (P15).

        Returns when no run is left, or could not be ended within seconds more.
        """
        self.draining = True
        if self._count and seconds > 0:
            logger.info("draining", open_runs=self._count, seconds=seconds)
            await self._wait(seconds, end=False)
        await self._wait(ENGINE_STOP_SECONDS + APPEND_RETRY_SECONDS, end=True)

    @property
    def _count(self) -> int:
        return len(self.tasks) + self._sends

    async def _wait(self, seconds: float, *, end: bool) -> None:
        """Wait until nothing is left, and end what is there or comes meanwhile if told to."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._count:
                    if end:
                        for driver in list(self.drivers.values()):
                            driver.end(DRAINED)
                    self._changed.clear()
                    await self._changed.wait()
