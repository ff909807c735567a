"""Waits between the attempts of a retry loop, which double with each failure."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from reattach.domain.clock import Clock, SystemClock, sleep_unless_set

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
