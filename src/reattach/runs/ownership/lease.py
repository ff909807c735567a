"""A process's lease on its runs: renewed by beats, and lost when another process buries it."""

import math
from collections.abc import Sequence

import structlog

from reattach.domain.clock import Clock
from reattach.domain.ids import RunId, new_uuid
from reattach.domain.limits import BEATS_PER_LEASE, LIFE_NOTED_SECONDS
from reattach.records.base import Beat
from reattach.records.records import Records

logger = structlog.get_logger(__name__)


class Ownership:
    """This process as an owner in the records.

    Processes that share records must beat (``upkeep/heartbeat.py``), and bury dead owners, whose
    lease has run out. After an outage of the records every lease has run out, so this process
    buries others only after its own beats have succeeded for a whole lease, in which every live
    process has beaten too. A process with records of its own neither beats nor waits: earlier
    owners are dead.
    """

    def __init__(self, records: Records, clock: Clock, lease_seconds: float) -> None:
        self.owner = new_uuid()
        self.beat_seconds = lease_seconds / BEATS_PER_LEASE
        self.shared = records.shared
        self._owners = records.owners
        self._clock = clock
        self.lease_seconds = lease_seconds
        self._steady_since: float | None = None
        self._beaten_at: float | None = None
        self._leased_at: float | None = None
        """When this process last asked for its lease and got it."""

    @property
    def margin_seconds(self) -> float | None:
        """The time until the lease runs out if it is not renewed; negative once it has run out.

        None without shared records, where nobody else takes runs over.
        """
        if not self.shared or self._leased_at is None:
            return None
        left_seconds = self._leased_at + self.lease_seconds - self._clock.monotonic_seconds()
        return round(left_seconds, 3)

    async def register(self) -> None:
        """Register this process as a live owner.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        asked_at = self._clock.monotonic_seconds()
        await self._owners.register(self.owner, self.lease_seconds)
        self._leased_at = asked_at
        if not self.shared:
            await self._owners.bury_all_but(self.owner)

    def record_beat(self, beat: Beat | None, asked_at: float, answered_at: float) -> None:
        """Record the outcome of a beat, with monotonic times; None if the records did not answer.

        After a pause, an outage or its own burial, this process waits a lease before it buries
        others.
        """
        half_lease = self.lease_seconds / 2
        if beat is None or not beat.alive:
            self._steady_since = None
            return
        before, self._beaten_at = self._beaten_at, answered_at
        self._leased_at = asked_at
        was_silent = before is not None and answered_at - before > half_lease
        was_slow = answered_at - asked_at > half_lease
        if was_silent or was_slow or beat.silent_seconds > half_lease:
            self._steady_since = None
        if self._steady_since is None:
            self._steady_since = answered_at

    async def note_life(self) -> Sequence[RunId]:
        """Record that this process lives, if no heartbeat does that: see ``Run.interrupted_at``.

        Returns its runs whose end another program requested, such as a command.
        """
        now = self._clock.monotonic_seconds()
        if self.shared or (self._beaten_at or -math.inf) > now - LIFE_NOTED_SECONDS:
            return ()
        self._beaten_at = now
        return (await self._owners.beat(self.owner)).cancelled

    async def replace_owner(self, dead_owner: str) -> None:
        """Register a new owner without runs in place of ``dead_owner``, once.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        if self.owner != dead_owner:
            return
        owner = new_uuid()
        asked_at = self._clock.monotonic_seconds()
        await self._owners.register(owner, self.lease_seconds)
        self._leased_at = asked_at
        if self.owner == dead_owner:
            logger.warning("declared dead by another process", was=dead_owner, now=owner)
            self.owner = owner
            self._steady_since = None

    async def bury_dead_owners(self) -> None:
        """Bury the owners whose lease has run out, if this process may judge that now.

        Their active runs are orphans from then on. A process that was paused must beat first,
        because its knowledge is old.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        if not self.shared or self._steady_since is None or self._beaten_at is None:
            return
        now = self._clock.monotonic_seconds()
        if now - self._steady_since < self.lease_seconds:
            return
        if now - self._beaten_at > self.lease_seconds / 2:
            return
        for owner in await self._owners.bury(self.owner):
            logger.warning("owner is dead, its lease has run out", owner=owner)

    async def is_dead(self, owner: str) -> bool:
        """Return whether ``owner`` is dead, so that its runs are orphans.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        await self.bury_dead_owners()
        return not await self._owners.is_alive(owner)

    async def release(self) -> None:
        """Give up the lease, unless this owner still has runs for others to end."""
        await self._owners.leave(self.owner)
