"""The question for all figures: of this process, and of all workers of the machine."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from reattach.meters.exposition import process_values
from reattach.meters.meters import Meters, Snapshot

Workers = Mapping[str, Snapshot]
"""The figures of each worker, by its slot."""


class Scrape:
    """Collects the figures for one scrape.

    A worker among several sets ``ask_all``, which asks the supervisor for the figures of all.
    """

    def __init__(self, meters: Meters, worker: str) -> None:
        self._meters = meters
        self._worker = worker
        self.ask_all: Callable[[], Awaitable[Workers]] | None = None

    async def own(self) -> Snapshot:
        """Return the figures of this process."""
        found = self._meters.snapshot()
        found["reattach_scrape_age_seconds"] = [((), 0)]
        return found | await asyncio.to_thread(self._blocking_values)

    def _blocking_values(self) -> Snapshot:
        return self._meters.blocking_snapshot() | process_values()

    async def all(self) -> Workers:
        """Return the figures of all workers of this machine that are known."""
        if self.ask_all is None:
            return {self._worker: await self.own()}
        return await self.ask_all()
