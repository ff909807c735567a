"""The retention of logs, safe against jumps of the clock."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ExpiredError
from reattach.domain.errors.stores import EventsLostError
from reattach.domain.ids import RunId
from reattach.domain.limits import CLOCK_JUMP_SECONDS
from reattach.records.base import Run
from reattach.records.records import Records

logger = structlog.get_logger(__name__)

_NEVER = datetime.min.replace(tzinfo=UTC)


class Retention:
    """Decides how long the logs of ended runs are kept.

    A run's end is a time of the wall clock. When that clock jumps against the monotonic one, the
    age of logs is unknown, so nothing is deleted until the clock has been steady for one retention.
    Then every earlier log is old enough, including those of runs that seem to have ended in the
    future.
    """

    def __init__(self, records: Records, clock: Clock, kept: timedelta) -> None:
        self._records = records
        self._clock = clock
        self._kept = kept
        self._tolerance = min(timedelta(seconds=CLOCK_JUMP_SECONDS), kept / 2)
        self._is_steady = True
        self._steady_since = clock.monotonic_seconds()
        self._seen = self._read_clocks()
        self._has_looked_ahead = False

    def check_clock(self) -> None:
        """Compare the wall clock with the monotonic clock. Call it at least whenever a run ends."""
        now, at_seconds = self._read_clocks()
        seen, seen_at_seconds = self._seen
        self._seen = now, at_seconds
        jump = (now - seen) - timedelta(seconds=at_seconds - seen_at_seconds)
        if abs(jump) > self._tolerance:
            self._pause_deletion("the clock jumped", seconds=round(jump.total_seconds()))

    async def find_expired(self, limit: int) -> Sequence[RunId]:
        """Return at most ``limit`` runs whose logs are to be deleted."""
        self.check_clock()
        now, at_seconds = self._seen
        if not self._has_looked_ahead:
            latest = await self._records.runs.latest_end()
            self._has_looked_ahead = True
            if latest is not None and latest > now + self._tolerance:
                self._pause_deletion("runs ended in the future", until=latest.isoformat())
        was_steady_long = at_seconds - self._steady_since > self._kept.total_seconds()
        before = now - self._kept if self._is_steady or was_steady_long else _NEVER
        after = now + self._tolerance if was_steady_long else None
        return await self._records.runs.list_expired(before, limit, after=after)

    def expired_error(self, run: Run) -> ExpiredError:
        """Return the error for readers of an ended run whose log was deleted or lost."""
        kept_until = None if run.completed_at is None else run.completed_at + self._kept
        if run.log_deleted_at is None and kept_until is not None and self._clock.now() < kept_until:
            return EventsLostError(run.id)
        until = "" if kept_until is None else f" until {kept_until.isoformat(timespec='seconds')}"
        return ExpiredError(
            f"The events of {run.id} were kept{until} and are now expired. "
            "The messages stay in the conversation; read them there.",
            expired_at=kept_until,
        )

    def _read_clocks(self) -> tuple[datetime, float]:
        return self._clock.now(), self._clock.monotonic_seconds()

    def _pause_deletion(self, why: str, **details: object) -> None:
        self._is_steady = False
        self._steady_since = self._seen[1]
        hours = self._kept.total_seconds() / 3600
        logger.warning("no logs are deleted for a while", why=why, hours=round(hours, 1), **details)
