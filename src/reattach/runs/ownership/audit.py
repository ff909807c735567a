"""The audit: log, records and drivers are compared with each other, both ways.

Each of the three is right by itself, but stores lose commits, and answers get lost. The audit looks
for pairs that contradict each other, and ends, continues or deletes the part that is left over:

- an active run of this process that no driver has: it is recovered;
- a driver whose run is another process's: it stops;
- an open log whose run has ended: the store lost its end, so it ends as a lost one (P5);
- a log without a record: it is deleted after the retention.

It acts on nothing that is too young to be judged. A driver is registered before its run is created,
and a run is created before its log is opened, so the later one of each pair is never alone; and
whatever seems to contradict is read again before anything is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import FencedError, LogNotFoundError
from reattach.domain.events import Event, Failed, Stopped, StopReason, Usage
from reattach.domain.ids import RunId
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.log.base import Head, Log
from reattach.records.base import Run
from reattach.records.records import Records
from reattach.runs.driver import RunDriver
from reattach.runs.endings import LOG_LOST, STORE_FAILED
from reattach.runs.ownership.lease import Ownership
from reattach.runs.ownership.recovery import LONGEST_TOKEN_STEP, Recovery
from reattach.wire import letta

logger = structlog.get_logger(__name__)

AUDIT_LOGS_SECONDS: Final = 600.0
"""How often all logs are compared with their records; a lost end is also noticed by readers."""

AUDIT_PAGE_LOGS: Final = 500
"""Logs that the audit compares in one go, so that no statement grows with their number."""


@dataclass(slots=True)
class Findings:
    """How many contradictions were found, by kind."""

    runs_without_driver: int = 0
    """Active runs of this process that nothing worked on; they were ended."""
    drivers_without_run: int = 0
    """Drivers whose run another process has, or nobody; they were stopped."""
    lost_ends: int = 0
    """Open logs of ended runs; they were ended as lost ones."""
    logs_without_record: int = 0
    """Logs of no known run; they are deleted after the retention."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


class Audit:
    """Compares log, records and drivers of one process. ``found`` counts since its start."""

    def __init__(
        self,
        log: Log,
        records: Records,
        clock: Clock,
        *,
        ownership: Ownership,
        recovery: Recovery,
        drivers: Mapping[str, RunDriver],
        retention: timedelta,
    ) -> None:
        self.found = Findings()
        self._log = log
        self._records = records
        self._clock = clock
        self._ownership = ownership
        self._recovery = recovery
        self._drivers = drivers
        self._retention = retention
        self._ended_before: set[str] = set()
        """Runs of drivers that had ended when the drivers were last compared."""

    # Records and drivers.

    async def compare_drivers(self, owner: str, held: Sequence[RunId]) -> None:
        """Compare the drivers with the active runs that ``owner``, this process, holds.

        Raises:
            StoreUnavailableError: A store does not answer; the next call goes on.
        """
        if owner != self._ownership.owner:
            return
        found = Findings()
        try:
            for run_id in held:
                if not self._is_worked_on(run_id):
                    found.runs_without_driver += await self._end_unworked(run_id, owner)
            found.drivers_without_run = await self._stop_strangers(owner, set(held))
        finally:
            self._count(found)

    def _is_worked_on(self, run_id: str) -> bool:
        return run_id in self._drivers or run_id in self._recovery.endless

    async def _end_unworked(self, run_id: RunId, owner: str) -> bool:
        run = await self._records.runs.held(run_id, owner)
        if run is None or self._is_worked_on(run_id):
            return False
        logger.warning("active run without driver", run_id=run_id)
        await self._recovery.end(run, STORE_FAILED)
        return True

    async def _stop_strangers(self, owner: str, held: set[RunId]) -> int:
        """Stop the drivers whose run is not ours, and return how many there are."""
        suspects = {
            run_id: driver
            for run_id, driver in list(self._drivers.items())
            if driver.admitted and run_id not in held
        }
        if not suspects:
            self._ended_before.clear()
            return 0
        standings = await self._records.runs.standings(list(suspects))
        ended = {run_id for run_id, standing in standings.items() if not standing.is_active}
        stopped = 0
        for run_id, driver in suspects.items():
            standing = standings.get(run_id)
            if standing is not None and standing.is_active and standing.owner == owner:
                continue  # It was created since.
            if self._drivers.get(run_id) is not driver:
                continue
            # A driver that has just settled its run is about to go.
            if run_id in ended and run_id not in self._ended_before:
                continue
            logger.warning("driver without a run of this process", run_id=run_id)
            driver.disown()
            stopped += 1
        self._ended_before = ended
        return stopped

    # Logs and records.

    async def compare_logs(self) -> None:
        """Compare every log of the store with its record, a page at a time.

        Raises:
            StoreUnavailableError: A store does not answer; the next call begins again.
        """
        found = Findings()
        cursor: str | None = None
        try:
            while True:
                page = await self._log.inventory(cursor, limit=AUDIT_PAGE_LOGS)
                closed = {entry.run_id: entry.closed for entry in page.entries}
                standings = await self._records.runs.standings(list(closed)) if closed else {}
                unknown = [run_id for run_id in closed if run_id not in standings]
                found.logs_without_record += await self._abandon(unknown)
                for run_id, standing in standings.items():
                    if not closed[run_id] and not standing.is_active:
                        found.lost_ends += await self._end_lost(RunId(run_id))
                cursor = page.cursor
                if cursor is None:
                    return
        finally:
            self._count(found)

    async def end_lost_log(self, run_id: RunId) -> None:
        """Give the open log of a run that has ended its end; no-op unless it is one.

        Raises:
            StoreUnavailableError: A store does not answer.
        """
        found = Findings(lost_ends=await self._end_lost(run_id))
        self._count(found)

    async def _abandon(self, run_ids: Sequence[str]) -> int:
        if not run_ids:
            return 0
        delete_at = self._clock.now() + self._retention
        new = await self._records.runs.abandon_logs(run_ids, delete_at)
        for run_id in new:
            logger.warning("log without a record", run_id=run_id)
        return len(new)

    async def _end_lost(self, run_id: RunId) -> bool:
        run = await self._records.runs.ended(run_id)
        if run is None or not await end_lost(run, self._log):
            return False
        logger.error("store lost the end of a log", run_id=run_id)
        return True

    def _count(self, found: Findings) -> None:
        if not found.total:
            return
        for kind, count in asdict(found).items():
            setattr(self.found, kind, getattr(self.found, kind) + count)
        logger.warning("audit found contradictions", **asdict(found))


async def end_lost(run: Run, log: Log) -> bool:
    """End the open log of ``run``, which has ended, where no reader has been; whether it was open.

    A run's log is closed before its record says so. If the log is open, its store lost the end, and
    perhaps events before it that were read. Its new end says what the record says.
    """
    if (await _head_unless_closed(run, log)) is None:
        return False
    token, step = run.token + 1, 1
    while True:
        try:
            head = await log.open(run.id, token, first_seq=LOST_LOG_FIRST_SEQ)
            break
        except FencedError:
            if step > LONGEST_TOKEN_STEP:
                raise
            token, step = token + step, 2 * step
    if head.closed:
        return False
    events = _end_of(run)
    first_seq = head.last_seq + 1
    frames = [letta.encode(event, seq, run.id) for seq, event in enumerate(events, first_seq)]
    await log.append(run.id, token, first_seq, frames, close=True)
    return True


async def _head_unless_closed(run: Run, log: Log) -> Head | None:
    try:
        head = await log.head(run.id)
    except LogNotFoundError:
        return None
    return None if head.closed else head


def _end_of(run: Run) -> list[Event]:
    """The terminal group that the record tells of."""
    events: list[Event] = [Stopped(run.stop_reason or StopReason.ERROR)]
    if run.error is not None:
        error = run.error
        detail = error.get("detail")
        events.append(
            Failed(
                str(error.get("error_type") or "internal_error"),
                str(error.get("message") or ""),
                None if detail is None else str(detail),
            )
        )
    elif run.stop_reason is None:
        assert LOG_LOST.failure is not None
        events.append(LOG_LOST.failure)
    return [*events, run.usage or Usage()]
