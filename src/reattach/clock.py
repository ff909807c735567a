"""Time as an input, so that tests decide what time it is."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the server reads the time and waits for it to pass."""

    def now(self) -> datetime:
        """The present as an aware datetime in UTC."""

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds``; cancellation passes through at once."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


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
