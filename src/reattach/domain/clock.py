"""Clocks, passed as arguments so that tests control the time."""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, Protocol

if sys.platform == "win32":
    _monotonic_seconds = time.monotonic
elif sys.platform == "linux":
    _monotonic_seconds = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    _monotonic_seconds = partial(time.clock_gettime, time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """A source of time, and a way to wait."""

    def now(self) -> datetime:
        """Return the present as an aware datetime in UTC."""

    def monotonic_seconds(self) -> float:
        """Return seconds from an arbitrary start, including suspensions; never decreases."""

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds``. Cancellation takes effect at once."""


def utc_text(at: datetime, timespec: Literal["auto", "microseconds"] = "auto") -> str:
    """Return an instant in UTC as RFC 3339 writes it, with ``Z``.

    It has microseconds unless they are zero and ``timespec`` is ``auto``.
    """
    return at.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return _monotonic_seconds()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SharedClock:
    """A store's clock, kept by the local monotonic clock, so that several machines agree.

    Until it is first set, it is this machine's clock. Later errors and jumps of that clock do not
    matter.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set_to: datetime | None = None
        self._set_at_seconds = 0.0

    def set(self, moment: datetime, at_seconds: float) -> None:
        """Declare that it was ``moment`` when the monotonic clock showed ``at_seconds``."""
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


async def sleep_unless_set(clock: Clock, seconds: float, event: asyncio.Event) -> None:
    """Return after at least ``seconds``, or as soon as ``event`` is set; it is not cleared.

    Cancellation takes effect at once.
    """
    time_passes = asyncio.ensure_future(clock.sleep(seconds))
    event_set = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({time_passes, event_set}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        time_passes.cancel()
        event_set.cancel()
