"""Waiting for the records to say how runs ended that other processes work on."""

import asyncio

from reattach.domain.clock import Clock, sleep_unless_set
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import RunId, TenantId
from reattach.domain.limits import SETTLEMENT_LOOK_SECONDS
from reattach.records.base import Run
from reattach.records.records import Records


class Settlements:
    """Whoever waits for a run's end here, with one look at the records for all that do.

    ``hear`` brings word of an end in milliseconds. Word may be lost, so there is also a look once
    in SETTLEMENT_LOOK_SECONDS, as long as somebody waits.
    """

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._words: dict[str, asyncio.Event] = {}
        self._looks: dict[str, asyncio.Task[Run]] = {}
        self._waiting: dict[str, int] = {}

    async def ended(self, tenant: TenantId, run_id: RunId) -> Run:
        """The run, once it has ended. A store that does not answer is waited for too.

        Raises NotFoundError.
        """
        look = self._looks.get(run_id)
        if look is None:
            look = asyncio.create_task(self._look(tenant, run_id), name=f"settled {run_id}")
            self._looks[run_id] = look
            self._waiting[run_id] = 0
        self._waiting[run_id] += 1
        try:
            return await asyncio.shield(look)
        finally:
            self._waiting[run_id] -= 1
            if not self._waiting[run_id]:
                look.cancel()
                del self._looks[run_id], self._waiting[run_id]

    def hear(self, run_id: str) -> None:
        """The records may say now how the run ended."""
        if run_id in self._words:
            self._words[run_id].set()

    def hear_all(self) -> None:
        """Word of any run may have been missed."""
        for word in self._words.values():
            word.set()

    async def _look(self, tenant: TenantId, run_id: RunId) -> Run:
        word = self._words[run_id] = asyncio.Event()
        try:
            while True:
                word.clear()
                try:
                    run = await self._records.runs.get(tenant, run_id)
                except StoreUnavailableError:
                    run = None
                if run is not None and not run.status.is_active:
                    return run
                await sleep_unless_set(self._clock, SETTLEMENT_LOOK_SECONDS, word)
        finally:
            if self._words.get(run_id) is word:
                del self._words[run_id]
