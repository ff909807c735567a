"""Time as an input, so that tests decide what time it is."""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

if sys.platform == "linux":
    _MONOTONIC: Final = time.CLOCK_BOOTTIME
else:
    _MONOTONIC: Final = time.CLOCK_MONOTONIC


class Clock(Protocol):
    """Where the server reads the time and waits for it to pass."""

    def now(self) -> datetime:
        """The present as an aware datetime in UTC."""

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary start; never goes back. A suspended machine counts on."""

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds``; cancellation passes through at once."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return time.clock_gettime(_MONOTONIC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SharedClock:
    """The clock of a store that several machines share, kept by this machine's monotonic clock.

    Until it is first set it is the clock of this machine. However that is wrong or jumps, the
    times that processes write and compare are those of the store.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set_to: datetime | None = None
        self._set_at_seconds = 0.0

    def set(self, moment: datetime, at_seconds: float) -> None:
        """It was ``moment`` when the monotonic clock showed ``at_seconds``."""
        self._set_to = moment
        self._set_at_seconds = at_seconds

    def now(self) -> datetime:
        if self._set_to is None:
            return self._clock.now()
        passed_seconds = self._clock.monotonic_seconds() - self._set_at_seconds
        return self._set_to + timedelta(seconds=passed_seconds)

    def monotonic_seconds(self) -> float:
        return self._clock.monotonic_seconds()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


async def sleep_unless_set(clock: Clock, seconds: float, word: asyncio.Event) -> None:
    """Return after at least ``seconds``, or as soon as ``word`` is set, which stays so.

    Cancellation passes through at once.
    """
    time_passes = asyncio.ensure_future(clock.sleep(seconds))
    told = asyncio.ensure_future(word.wait())
    try:
        await asyncio.wait({time_passes, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        time_passes.cancel()
        told.cancel()
