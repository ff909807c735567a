"""The audit: compares log, records and run drivers with each other in both directions.

Stores lose commits and answers get lost, so two of the three can contradict each other. The audit
finds such pairs and ends, continues or deletes the part that is left over:

- An active run of this process without a driver is recovered.
- A driver whose run belongs to another process is stopped.
- An open log whose run has ended was lost in part; it is closed as a lost log (P5).
- A log without a record is deleted after the retention.

No pair is judged too early. A driver is registered before its run is created, and a run is created
before its log is opened, so the later part of a pair never exists alone. Every apparent
contradiction is read again before anything is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ExpiredError, FencedError, TrimmedError
from reattach.domain.errors.stores import EventsLostError
from reattach.domain.events import Failed, StopReason, Usage
from reattach.domain.ids import FIRST_SEQ, RunId, Token
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.log.base import Log
from reattach.records.base import Run, Target
from reattach.records.records import Records
from reattach.runs.driver import RunDriver
from reattach.runs.endings import LOG_LOST, STORE_FAILED, Ending
from reattach.runs.ownership.lease import Ownership
from reattach.runs.ownership.orphan_log import find_head
from reattach.runs.ownership.recovery import LONGEST_TOKEN_STEP, Recovery
from reattach.runs.ownership.retention import Retention
from reattach.wire import letta

logger = structlog.get_logger(__name__)

AUDIT_LOGS_SECONDS: Final = 600.0
"""The interval at which all logs are compared with their records. Readers notice a lost end too."""

AUDIT_PAGE_LOGS: Final = 500
"""Logs per page of the audit, so that no statement grows with the number of logs."""


@dataclass(slots=True)
class Contradictions:
    """The number of contradictions found, by kind."""

    runs_without_driver: int = 0
    """Active runs of this process without a driver; they were ended."""
    drivers_without_run: int = 0
    """Drivers whose run is not this process's; they were stopped."""
    lost_ends: int = 0
    """Open logs of ended runs; they were closed as lost logs."""
    logs_without_record: int = 0
    """Logs of unknown runs; they are deleted after the retention."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


class Audit:
    """The audit of one process. ``found`` counts since its start."""

    def __init__(
        self,
        log: Log,
        records: Records,
        clock: Clock,
        *,
        ownership: Ownership,
        recovery: Recovery,
        drivers: Mapping[str, RunDriver],
        retention: Retention,
    ) -> None:
        self.found = Contradictions()
        self._log = log
        self._records = records
        self._clock = clock
        self._ownership = ownership
        self._recovery = recovery
        self._drivers = drivers
        self._retention = retention
        self._ended_before: set[str] = set()
        """Runs that had ended when the drivers were last compared."""

    async def explain_trimmed(self, target: Target, trimmed: TrimmedError) -> ExpiredError:
        """Return the error for a reader of events that the log does not have any more.

        Nothing is deleted from an open log, and the record of an ended run has the number of its
        events, so only a closed log with fewer was trimmed. Any other one has lost events: it began
        late, or is no longer the log in which the reader found the gap, as after a failover.
        """
        run = await self._records.runs.get(target.tenant, target.run_id)
        head = await find_head(run, self._log)
        if head is None and not run.status.is_active:
            return self._retention.expired_error(run)
        if head is None or run.status.is_active:
            return EventsLostError(run.id, None if head is None else head.first_seq)
        if not head.closed:  # The next reader gets an end: see ``end_lost_log``.
            return EventsLostError(run.id)
        events = head.last_seq + 1 - head.first_seq
        had_more = run.event_count is not None and run.event_count > events
        is_trimmed = had_more and FIRST_SEQ < head.first_seq < LOST_LOG_FIRST_SEQ
        return trimmed if is_trimmed else EventsLostError(run.id, head.first_seq)

    # Records and drivers.

    async def compare_drivers(self, owner: str, held: Sequence[RunId]) -> None:
        """Compare the drivers with the active runs of ``owner``, this process, in the records.

        Raises:
            StoreUnavailableError: A store does not answer; call it again later.
        """
        if owner != self._ownership.owner:
            return
        found = Contradictions()
        try:
            for run_id in held:
                if not self._has_driver(run_id):
                    found.runs_without_driver += await self._end_without_driver(run_id, owner)
            found.drivers_without_run = await self._stop_foreign_drivers(owner, set(held))
        finally:
            self._count(found)

    def _has_driver(self, run_id: str) -> bool:
        return run_id in self._drivers or run_id in self._recovery.pending

    async def _end_without_driver(self, run_id: RunId, owner: str) -> bool:
        owned = await self._records.runs.find_owned(run_id, owner)
        if owned is None or self._has_driver(run_id):
            return False
        logger.warning("active run without driver", run_id=run_id)
        await self._recovery.end(owned.run, STORE_FAILED)
        return True

    async def _stop_foreign_drivers(self, owner: str, held: set[RunId]) -> int:
        """Stop the drivers whose run is not this process's, and return their number."""
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
                continue  # Created after ``held`` was read.
            if self._drivers.get(run_id) is not driver:
                continue
            # The driver may just have settled its run and be about to end.
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
            StoreUnavailableError: A store does not answer; the next call starts over.
        """
        found = Contradictions()
        cursor: str | None = None
        try:
            while True:
                page = await self._log.inventory(cursor, limit=AUDIT_PAGE_LOGS)
                closed = {entry.run_id: entry.closed for entry in page.entries}
                standings = await self._records.runs.standings(list(closed)) if closed else {}
                unknown = [run_id for run_id in closed if run_id not in standings]
                found.logs_without_record += await self._schedule_deletion(unknown)
                for run_id, standing in standings.items():
                    if not closed[run_id] and not standing.is_active:
                        found.lost_ends += await self._close_if_lost(RunId(run_id))
                cursor = page.cursor
                if cursor is None:
                    return
        finally:
            self._count(found)

    async def end_lost_log(self, run_id: RunId) -> None:
        """Close the log of an ended run if it is open.

        Raises:
            StoreUnavailableError: A store does not answer.
        """
        found = Contradictions(lost_ends=await self._close_if_lost(run_id))
        self._count(found)

    async def _schedule_deletion(self, run_ids: Sequence[str]) -> int:
        if not run_ids:
            return 0
        delete_at = self._clock.now() + self._retention.kept
        new = await self._records.runs.abandon_logs(run_ids, delete_at)
        for run_id in new:
            logger.warning("log without a record", run_id=run_id)
        return len(new)

    async def _close_if_lost(self, run_id: RunId) -> bool:
        run = await self._records.runs.find_ended(run_id)
        if run is None or not await close_lost_log(run, self._log):
            return False
        logger.error("store lost the end of a log", run_id=run_id)
        return True

    def _count(self, found: Contradictions) -> None:
        if not found.total:
            return
        for kind, count in asdict(found).items():
            setattr(self.found, kind, getattr(self.found, kind) + count)
        logger.warning("audit found contradictions", **asdict(found))


async def close_lost_log(run: Run, log: Log) -> bool:
    """Close the open log of the ended ``run``, beyond every reader; return False if it was closed.

    A run's log is closed before its record has the end. An open log has therefore lost its end in
    the store, and perhaps events before it that were read. The new end repeats the record's.
    """
    head = await find_head(run, log)
    if head is None or head.closed:
        return False
    token, step = Token(run.token + 1), 1
    while True:
        try:
            writer = await log.open(run.id, token, first_seq=LOST_LOG_FIRST_SEQ)
            break
        except FencedError:
            if step > LONGEST_TOKEN_STEP:
                raise
            token, step = Token(token + step), 2 * step
    if writer.head.closed:
        return False
    events = _recorded_ending(run).terminal_group(run.usage or Usage())
    frames = letta.Encoder(run.id).frames(events, after_seq=writer.last_seq)
    await writer.append(writer.last_seq + 1, frames, close=True)
    return True


def _recorded_ending(run: Run) -> Ending:
    """Return the ending that the record describes."""
    if run.error is not None:
        failure = Failed(run.error.error_type, run.error.message, run.error.detail)
        return Ending(run.stop_reason or StopReason.ERROR, failure)
    return LOG_LOST if run.stop_reason is None else Ending(run.stop_reason)
