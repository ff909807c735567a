"""Retry loops: waits that double with each failure, and attempts until a store answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from reattach.domain.clock import Clock, SystemClock, sleep_unless_set
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.limits import APPEND_RETRY_DELAY_SECONDS, APPEND_RETRY_SECONDS

T = TypeVar("T")

_MOST_DOUBLINGS = 30
"""Keeps the power finite; every backoff has reached its longest wait by then."""


@dataclass(slots=True)
class Backoff:
    """The waits of one retry loop: ``first_seconds``, doubled by each failure up to the longest."""

    first_seconds: float
    longest_seconds: float
    failures: int = 0
    """Failed attempts since the last success."""

    clock: Clock = field(default_factory=SystemClock)
    uniform: Callable[[float, float], float] | None = None
    """Draws each wait from its upper half, where many loops would otherwise retry at once."""

    @property
    def seconds(self) -> float:
        """The next wait, before it is drawn."""
        doublings = min(self.failures, _MOST_DOUBLINGS)
        return min(self.first_seconds * 2.0**doublings, self.longest_seconds)

    def next_seconds(self) -> float:
        """Count a failure and return the wait after it."""
        seconds = self.seconds
        self.failures += 1
        return seconds if self.uniform is None else self.uniform(seconds / 2, seconds)

    def reset(self) -> None:
        """Note a success: the next wait is the first one again."""
        self.failures = 0

    async def wait(self, unless_set: asyncio.Event | None = None) -> None:
        """Count a failure and wait after it, or until ``unless_set`` is set."""
        seconds = self.next_seconds()
        if unless_set is None:
            await self.clock.sleep(seconds)
        else:
            await sleep_unless_set(self.clock, seconds, unless_set)


async def until_available(clock: Clock, operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat the idempotent ``operation`` until the store answers, and return its result.

    Raises:
        StoreUnavailableError: The store did not answer for APPEND_RETRY_SECONDS.
        Exception: Any other exception of ``operation``, at once.
    """
    give_up_at = clock.monotonic_seconds() + APPEND_RETRY_SECONDS
    while True:
        try:
            return await operation()
        except StoreUnavailableError:
            if clock.monotonic_seconds() >= give_up_at:
                raise
            await clock.sleep(APPEND_RETRY_DELAY_SECONDS)
