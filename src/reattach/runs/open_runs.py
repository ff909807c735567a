"""The open runs of a process, and the sends that may still start one."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from reattach.domain.ids import TenantId
from reattach.domain.limits import APPEND_RETRY_SECONDS, ENGINE_STOP_SECONDS, SETTLED_RUNS_KNOWN
from reattach.runs.driver import RunDriver
from reattach.runs.endings import Ending

logger = structlog.get_logger(__name__)


class OpenRuns:
    """The drivers of the open runs by run id, each with its task.

    ``draining`` is set once new runs are refused. A send that was let in before may still start
    one, so a drain waits for sends as well as for runs.
    """

    def __init__(self) -> None:
        self.draining = False
        self.drivers: dict[str, RunDriver] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._settled: dict[str, None] = {}
        """The newest of the runs that were settled here, for readers that have not seen the end."""
        self._sends = 0
        self._changed = asyncio.Event()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Delay a drain until the send has started its run or failed."""
        self._sends += 1
        try:
            yield
        finally:
            self._sends -= 1
            self._changed.set()

    def start(self, driver: RunDriver, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` as a task of its own; it removes the driver when it ends.

        The task is independent of the sender, so a cancelled sender leaves no run without a driver.
        """
        run_id = driver.run.id
        self.drivers[run_id] = driver
        task = asyncio.create_task(work, name=f"run {run_id}")
        self.tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def remove(self, driver: RunDriver) -> None:
        """Remove the driver at its end. Idempotent."""
        run_id = driver.run.id
        self.drivers.pop(run_id, None)
        if driver.settled:
            self._settled[run_id] = None
            if len(self._settled) > SETTLED_RUNS_KNOWN:
                del self._settled[next(iter(self._settled))]

    def has_settled(self, run_id: str) -> bool:
        """Whether the run was settled by this process a moment ago. False may mean long ago."""
        return run_id in self._settled

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._changed.set()

    def count_of(self, tenant: TenantId) -> int:
        """Count the tenant's runs that are open or about to be."""
        return sum(driver.run.tenant == tenant for driver in self.drivers.values())

    def end(self, run_id: str, ending: Ending) -> bool:
        """End the run if this process drives it, and return whether it does."""
        driver = self.drivers.get(run_id)
        if driver is not None:
            driver.end(ending)
        return driver is not None

    async def drain(self, seconds: float) -> None:
        """Refuse new runs, let the open ones finish for ``seconds``, then hand them over (P15).

        Return when no run is left, or when the rest did not stop within some seconds more.
        """
        self.draining = True
        if self._pending_count and seconds > 0:
            logger.info("draining", open_runs=self._pending_count, seconds=seconds)
            await self._wait(seconds, stop=False)
        await self._wait(ENGINE_STOP_SECONDS + APPEND_RETRY_SECONDS, stop=True)

    @property
    def _pending_count(self) -> int:
        return len(self.tasks) + self._sends

    async def _wait(self, seconds: float, *, stop: bool) -> None:
        """Wait until nothing is left; with ``stop``, hand over every run, including later ones."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pending_count:
                    if stop:
                        for driver in list(self.drivers.values()):
                            driver.hand_over()
                    self._changed.clear()
                    await self._changed.wait()
