"""Records when each key was last used."""

import asyncio

import structlog

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.limits import KEY_USE_SECONDS
from reattach.records.keys import Keys

logger = structlog.get_logger(__name__)


class KeyUses:
    """Writes the last use of each key at most once per KEY_USE_SECONDS, in the background."""

    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self._used: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        """Record that the key was used now."""
        now = self._clock.monotonic_seconds()
        if now < self._quiet_until.get(key_id, now):
            return
        self._quiet_until[key_id] = now + KEY_USE_SECONDS
        self._used.add(key_id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="note uses of keys")

    async def _write(self) -> None:
        while self._used:
            used, self._used = sorted(self._used), set()
            try:
                await self._keys.mark_used(used, self._clock.now())
            except ReattachError as error:  # The next use is written again.
                logger.warning("cannot record the use of keys", reason=error.detail)
