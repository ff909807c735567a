"""Waiting for the ends of runs that other processes drive."""

import asyncio

from reattach.domain.clock import Clock, sleep_unless_set
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import RunId, TenantId
from reattach.domain.limits import SETTLEMENT_LOOK_SECONDS
from reattach.records.base import Run
from reattach.records.records import Records


class Settlements:
    """Waits for the ends of runs, with one query per run for all waiters.

    ``notify`` passes on an end within milliseconds. Notifications may be lost, so the records are
    also polled every SETTLEMENT_LOOK_SECONDS while somebody waits.
    """

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._notified: dict[str, asyncio.Event] = {}
        self._polls: dict[str, asyncio.Task[Run]] = {}
        self._waiting: dict[str, int] = {}

    async def wait(self, tenant: TenantId, run_id: RunId) -> Run:
        """Return the run once it has ended. Waits through outages of the store.

        Raises:
            NotFoundError: The tenant has no such run.
        """
        poll = self._polls.get(run_id)
        if poll is None:
            poll = asyncio.create_task(self._poll(tenant, run_id), name=f"settled {run_id}")
            self._polls[run_id] = poll
            self._waiting[run_id] = 0
        self._waiting[run_id] += 1
        try:
            return await asyncio.shield(poll)
        finally:
            self._waiting[run_id] -= 1
            if not self._waiting[run_id]:
                poll.cancel()
                del self._polls[run_id], self._waiting[run_id]

    def notify(self, run_id: str) -> None:
        """Query the run at once: it may have ended."""
        if run_id in self._notified:
            self._notified[run_id].set()

    def notify_all(self) -> None:
        """Query all awaited runs at once: notifications may have been lost."""
        for notified in self._notified.values():
            notified.set()

    async def _poll(self, tenant: TenantId, run_id: RunId) -> Run:
        notified = self._notified[run_id] = asyncio.Event()
        try:
            while True:
                notified.clear()
                try:
                    run = await self._records.runs.get(tenant, run_id)
                except StoreUnavailableError:
                    run = None
                if run is not None and not run.status.is_active:
                    return run
                await sleep_unless_set(self._clock, SETTLEMENT_LOOK_SECONDS, notified)
        finally:
            if self._notified.get(run_id) is notified:
                del self._notified[run_id]
