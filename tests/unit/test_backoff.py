from __future__ import annotations

import asyncio

from reattach.domain.backoff import Backoff
from reattach.domain.clock import SystemClock

HOUR_SECONDS = 3600.0


class RecordingClock(SystemClock):
    """Its sleeps take no time, and are recorded."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_each_wait_is_twice_the_one_before_until_the_longest() -> None:
    clock = RecordingClock()
    backoff = Backoff(0.5, 3.0, clock=clock)
    for _ in range(5):
        await backoff.wait()
    assert clock.slept == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_success_brings_back_the_first_wait() -> None:
    backoff = Backoff(1.0, 60.0)
    assert [backoff.next_seconds() for _ in range(3)] == [1.0, 2.0, 4.0]
    backoff.reset()
    assert backoff.seconds == 1.0
    assert backoff.next_seconds() == 1.0


def test_a_loop_that_fails_for_days_still_has_a_wait() -> None:
    assert Backoff(0.05, 5.0, failures=100_000).next_seconds() == 5.0


def test_a_wait_is_drawn_from_its_upper_half() -> None:
    drawn: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    backoff = Backoff(2.0, 6.0, uniform=lowest)
    assert [backoff.next_seconds() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert drawn == [(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]


async def test_an_event_ends_a_wait() -> None:
    event = asyncio.Event()
    backoff = Backoff(HOUR_SECONDS, HOUR_SECONDS)
    waiting = asyncio.ensure_future(backoff.wait(unless_set=event))
    await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    async with asyncio.timeout(10):
        await waiting
    assert backoff.failures == 1
