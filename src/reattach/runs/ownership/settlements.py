"""Waiting for the ends of runs that other processes drive."""

import asyncio
from dataclasses import dataclass

from reattach.domain.clock import Clock, sleep_unless_set
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import RunId, TenantId
from reattach.domain.limits import SETTLEMENT_LOOK_SECONDS
from reattach.records.base import Run
from reattach.records.records import Records


@dataclass(slots=True)
class _Poll:
    """The query for the end of one run, for all its waiters."""

    notified: asyncio.Event
    task: asyncio.Task[Run]
    waiters: int = 0


class Settlements:
    """Waits for the ends of runs, with one query per run for all waiters.

    ``notify`` passes on an end within milliseconds. Notifications may be lost, so the records are
    also polled every SETTLEMENT_LOOK_SECONDS while somebody waits.
    """

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._polls: dict[str, _Poll] = {}
        self._released = False

    async def wait(self, tenant: TenantId, run_id: RunId) -> Run:
        """Return the run once it has ended, or as it is after ``release``.

        Waits through outages of the store.

        Raises:
            NotFoundError: The tenant has no such run.
        """
        poll = self._polls.get(run_id)
        if poll is None:
            notified = asyncio.Event()
            work = self._poll(tenant, run_id, notified)
            poll = _Poll(notified, asyncio.create_task(work, name=f"settled {run_id}"))
            self._polls[run_id] = poll
        poll.waiters += 1
        try:
            return await asyncio.shield(poll.task)
        finally:
            poll.waiters -= 1
            if not poll.waiters:
                poll.task.cancel()
                del self._polls[run_id]

    def notify(self, run_id: str) -> None:
        """Query the run at once: it may have ended."""
        if run_id in self._polls:
            self._polls[run_id].notified.set()

    def notify_all(self) -> None:
        """Query all awaited runs at once: notifications may have been lost."""
        for poll in self._polls.values():
            poll.notified.set()

    def release(self) -> None:
        """Let nobody wait from now on, because this process is about to end. Idempotent."""
        self._released = True
        self.notify_all()

    async def _poll(self, tenant: TenantId, run_id: RunId, notified: asyncio.Event) -> Run:
        while True:
            notified.clear()
            try:
                run = await self._records.runs.get(tenant, run_id)
            except StoreUnavailableError:
                run = None
            if run is not None and (self._released or not run.status.is_active):
                return run
            await sleep_unless_set(self._clock, SETTLEMENT_LOOK_SECONDS, notified)
