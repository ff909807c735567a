"""Readers that were cut off, written to the records together and some time later."""

import asyncio
from collections import deque
from typing import Final

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.ids import RunId
from reattach.records.records import Records
from reattach.records.runs.cut_offs import MAX_CUT_OFFS, KeptCutOff
from reattach.runs.following.readers import CutOff, Readers
from reattach.runs.ownership.lease import Ownership

logger = structlog.get_logger(__name__)

WRITE_SECONDS: Final = 1.0
"""How long cut-offs are collected before they are written, so that a crowd makes one write."""

MAX_WAITING_RUNS: Final = 1_000
"""The runs whose cut-offs may wait for a write. Those of others are only in the server's log."""


class CutOffs:
    """Keeps the cut-offs of this process."""

    def __init__(
        self, records: Records, readers: Readers, ownership: Ownership, clock: Clock
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._clock = clock
        self._waiting: dict[RunId, deque[KeptCutOff]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        readers.on_cut(self._note)

    def _note(self, cut: CutOff) -> None:
        if cut.run_id not in self._waiting and len(self._waiting) >= MAX_WAITING_RUNS:
            return
        kept = KeptCutOff(
            cut.run_id,
            cut.at,
            cut.reason.value,
            cut.cursor,
            cut.client,
            cut.transport.value,
            self._ownership.owner,
        )
        self._waiting.setdefault(cut.run_id, deque(maxlen=MAX_CUT_OFFS)).append(kept)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later(), name="write cut-offs")

    async def _write_later(self) -> None:
        while self._waiting:
            await self._clock.sleep(WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write those that wait. If that fails, they go on waiting."""
        async with self._lock:
            waiting, self._waiting = self._waiting, {}
            if not waiting:
                return
            try:
                await self._records.cut_offs.add([one for run in waiting.values() for one in run])
            except ReattachError as error:
                logger.warning("cut-offs not written", reason=error.detail)
                for run_id, newer in self._waiting.items():
                    waiting.setdefault(run_id, deque(maxlen=MAX_CUT_OFFS)).extend(newer)
                self._waiting = waiting

    async def aclose(self) -> None:
        """Write those that wait, once."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        await self.write()
