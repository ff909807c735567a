"""The retention of logs, safe against jumps of the clock."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ExpiredError
from reattach.domain.errors.stores import EventsLostError
from reattach.domain.ids import RunId
from reattach.domain.limits import CLOCK_JUMP_SECONDS
from reattach.records.base import Run
from reattach.records.clocks.notes import ClockNote
from reattach.records.records import Records

logger = structlog.get_logger(__name__)

_NEVER = datetime.min.replace(tzinfo=UTC)


class Retention:
    """Decides how long the logs of ended runs are kept.

    A run's end is a time of the wall clock. When that clock jumps against the monotonic one, the
    age of logs is unknown, so nothing is deleted until the clock has been steady for one retention.
    Then every earlier log is old enough, including those of runs that seem to have ended in the
    future.

    The next process learns from a note in the records how the clock stood. Within one boot of the
    machine the monotonic clock goes on, so a jump between two processes differs from a long time
    without any. After another boot the two look alike, and only a pause that was not over counts.
    """

    def __init__(
        self, records: Records, clock: Clock, kept: timedelta, boot: str | None = None
    ) -> None:
        """``boot`` identifies the boot of this machine, if that is known."""
        self._records = records
        self._clock = clock
        self.kept = kept
        """How long the logs of ended runs are kept."""
        self._boot = boot
        self._tolerance = min(timedelta(seconds=CLOCK_JUMP_SECONDS), kept / 2)
        self._is_steady = True
        self._steady_since = clock.monotonic_seconds()
        self._seen = self._read_clocks()
        self._has_read_note = False
        self._noted: ClockNote | None = None
        self._has_looked_ahead = False

    async def check_clock(self) -> None:
        """Compare the wall clock with the monotonic clock, and note a jump for later processes.

        Call it before the end of a run is written. Repeating it is safe.

        Raises:
            StoreUnavailableError: The clock is not noted; call it again.
        """
        now, at_seconds = self._read_clocks()
        seen, seen_at_seconds = self._seen
        self._seen = now, at_seconds
        self._distrust_jump((now - seen) - timedelta(seconds=at_seconds - seen_at_seconds))
        if not self._has_read_note:
            self._resume(await self._records.clock_notes.latest())
        if self._was_steady_long:
            self._is_steady = True
        await self._note_clock()

    async def find_expired(self, limit: int) -> Sequence[RunId]:
        """Return at most ``limit`` runs whose logs are to be deleted."""
        await self.check_clock()
        now = self._seen[0]
        if not self._has_looked_ahead:
            latest = await self._records.runs.latest_end()
            self._has_looked_ahead = True
            is_ahead = latest is not None and latest > now + self._tolerance
            if latest is not None and is_ahead and self._is_steady and not self._was_steady_long:
                self._pause_deletion("runs ended in the future", until=latest.isoformat())
                await self._note_clock()
        before = now - self.kept if self._is_steady else _NEVER
        after = now + self._tolerance if self._was_steady_long else None
        return await self._records.runs.list_expired(before, limit, after=after)

    def expired_error(self, run: Run) -> ExpiredError:
        """Return the error for readers of an ended run whose log was deleted or lost."""
        kept_until = None if run.completed_at is None else run.completed_at + self.kept
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

    @property
    def _was_steady_long(self) -> bool:
        return self._seen[1] - self._steady_since > self.kept.total_seconds()

    @property
    def _zero_at(self) -> datetime:
        """The time at which the monotonic clock showed zero, by the wall clock."""
        return self._seen[0] - timedelta(seconds=self._seen[1])

    def _resume(self, found: ClockNote | None) -> None:
        """Go on from the note of an earlier process."""
        if self._has_read_note:
            return
        self._has_read_note, self._noted = True, found
        if found is None:
            return
        if self._boot is None or found.boot != self._boot:
            if not found.is_steady:
                self._pause_deletion("the clock jumped before the machine was started")
        elif not self._distrust_jump(self._zero_at - found.zero_at) and self._is_steady:
            self._is_steady, self._steady_since = found.is_steady, found.steady_since_seconds

    async def _note_clock(self) -> None:
        """Write the note for later processes, unless it says the same already."""
        note = ClockNote(self._boot, self._zero_at, self._steady_since, self._is_steady)
        noted = self._noted
        if noted is None or noted.boot != note.boot:
            is_new = note.boot is not None or not note.is_steady
        else:
            is_moved = abs(note.zero_at - noted.zero_at) > self._tolerance / 2
            is_new = is_moved or replace(noted, zero_at=note.zero_at) != note
        if is_new:
            await self._records.clock_notes.keep(note)
            self._noted = note

    def _distrust_jump(self, jump: timedelta) -> bool:
        """Pause deletion if the wall clock moved by so much against the monotonic one."""
        if abs(jump) <= self._tolerance:
            return False
        self._pause_deletion("the clock jumped", seconds=round(jump.total_seconds()))
        return True

    def _pause_deletion(self, why: str, **details: object) -> None:
        self._is_steady = False
        self._steady_since = self._seen[1]
        hours = self.kept.total_seconds() / 3600
        logger.warning("no logs are deleted for a while", why=why, hours=round(hours, 1), **details)
