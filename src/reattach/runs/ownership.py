"""The lease that a process has on its runs: kept by its beats, and lost to whoever buries it."""

import structlog

from reattach.clock import Clock
from reattach.errors import StoreUnavailableError
from reattach.ids import new_uuid
from reattach.limits import BEATS_PER_LEASE
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

    async def begin(self) -> None:
        """Let the owner live from now on. Raises StoreUnavailableError."""
        await self._owners.register(self.owner, self._lease_seconds)
        if not self.shared:
            await self._owners.bury_all_but(self.owner)

    async def beat(self) -> Beat:
        """Renew the lease. An owner that was buried is replaced by a new one, which has no runs.

        Raises StoreUnavailableError.
        """
        asked_at = self._clock.monotonic_seconds()
        try:
            beat = await self._owners.beat(self.owner)
            if not beat.alive:
                owner = new_uuid()
                await self._owners.register(owner, self._lease_seconds)
                logger.warning("declared dead by another process", was=self.owner, now=owner)
                self.owner = owner
                self._steady_since = None
        except StoreUnavailableError:
            self._steady_since = None
            raise
        self._note_beat(asked_at)
        return beat

    def _note_beat(self, asked_at: float) -> None:
        now = self._clock.monotonic_seconds()
        before, self._beaten_at = self._beaten_at, now
        paused = before is not None and now - before > self._lease_seconds / 2
        if self._steady_since is None or paused or now - asked_at > self._lease_seconds / 2:
            self._steady_since = now

    async def bury(self) -> None:
        """Let the owners die whose leases have run out, if that may be judged at present.

        Their active runs are orphans from then on. Raises StoreUnavailableError.
        """
        if not self.shared or self._steady_since is None:
            return
        if self._clock.monotonic_seconds() - self._steady_since < self._lease_seconds:
            return
        for owner in await self._owners.bury():
            logger.warning("owner is dead, its lease has run out", owner=owner)

    async def is_gone(self, owner: str) -> bool:
        """Whether nobody works any more on the runs of ``owner``. Raises StoreUnavailableError."""
        await self.bury()
        return not await self._owners.alive(owner)

    async def leave(self) -> None:
        """Let the owner live no longer, unless runs of it are left to be ended by others."""
        await self._owners.leave(self.owner)
