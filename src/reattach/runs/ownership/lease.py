"""The lease that a process has on its runs: kept by its beats, and lost to whoever buries it."""

import structlog

from reattach.domain.clock import Clock
from reattach.domain.ids import new_uuid
from reattach.domain.limits import BEATS_PER_LEASE
from reattach.records.base import Beat
from reattach.records.records import Records

logger = structlog.get_logger(__name__)


class Ownership:
    """The owner that this process is in the records.

    Where processes share the records it has to ``beat``, and buries others whose lease ran out.
    After an outage of the records every lease has run out; so it buries nobody before its own
    beats have gone through for as long as a lease, in which all that live have beaten too.
    A process that has its records alone neither beats nor waits: who was there before is dead.
    """

    def __init__(self, records: Records, clock: Clock, lease_seconds: float) -> None:
        self.owner = new_uuid()
        self.beat_seconds = lease_seconds / BEATS_PER_LEASE
        self.shared = records.shared
        self._owners = records.owners
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._steady_since: float | None = None
        self._beaten_at: float | None = None

    async def register(self) -> None:
        """Let the owner live from now on. Raises StoreUnavailableError."""
        await self._owners.register(self.owner, self._lease_seconds)
        if not self.shared:
            await self._owners.bury_all_but(self.owner)

    async def beat(self) -> Beat:
        """Renew the lease from the event loop. See ``Heartbeat`` for what does not wait for it.

        Raises StoreUnavailableError.
        """
        asked_at = self._clock.monotonic_seconds()
        beat: Beat | None = None
        try:
            beat = await self._owners.beat(self.owner)
        finally:
            self.note(beat, asked_at, self._clock.monotonic_seconds())
        return beat

    def note(self, beat: Beat | None, asked_at: float, answered_at: float) -> None:
        """Take in what came of a beat, by the monotonic clock; None if the records did not answer.

        After a pause, an outage or a burial it takes a lease until others may be judged.
        """
        half_lease = self._lease_seconds / 2
        if beat is None or not beat.alive:
            self._steady_since = None
            return
        before, self._beaten_at = self._beaten_at, answered_at
        was_silent = before is not None and answered_at - before > half_lease
        was_slow = answered_at - asked_at > half_lease
        if was_silent or was_slow or beat.silent_seconds > half_lease:
            self._steady_since = None
        if self._steady_since is None:
            self._steady_since = answered_at

    async def renew(self, buried: str) -> None:
        """Be a new owner, which has no runs, unless this process is another one than ``buried``.

        Raises StoreUnavailableError.
        """
        if self.owner != buried:
            return
        owner = new_uuid()
        await self._owners.register(owner, self._lease_seconds)
        if self.owner == buried:
            logger.warning("declared dead by another process", was=buried, now=owner)
            self.owner = owner
            self._steady_since = None

    async def expire_owners(self) -> None:
        """Let the owners die whose leases have run out, if that may be judged at present.

        Their active runs are orphans from then on. A process that stood still beats first: it may
        judge nobody by what it knew before. Raises StoreUnavailableError.
        """
        if not self.shared or self._steady_since is None or self._beaten_at is None:
            return
        now = self._clock.monotonic_seconds()
        if now - self._steady_since < self._lease_seconds:
            return
        if now - self._beaten_at > self._lease_seconds / 2:
            return
        for owner in await self._owners.bury(self.owner):
            logger.warning("owner is dead, its lease has run out", owner=owner)

    async def is_gone(self, owner: str) -> bool:
        """Whether nobody works any more on the runs of ``owner``. Raises StoreUnavailableError."""
        await self.expire_owners()
        return not await self._owners.alive(owner)

    async def release(self) -> None:
        """Let the owner live no longer, unless runs of it are left to be ended by others."""
        await self._owners.leave(self.owner)
