"""When readers are told: at once, and together when telling takes long."""

from __future__ import annotations

import asyncio

import pytest

from reattach.log import herald as herald_module
from reattach.log.herald import Herald
from reattach.log.tail import Tail


class Listening:
    """Notes what it saw of a tail whenever it was told; each time takes ``seconds``."""

    def __init__(self, tail: Tail, clock: Watchmaker, seconds: float = 0.0) -> None:
        self.seen: list[int] = []
        self.told = asyncio.Event()
        self._tail = tail
        self._clock = clock
        self._seconds = seconds
        tail.subscribe(self)

    def __call__(self) -> None:
        self.seen.append(self._tail.last_seq)
        self.told.set()
        self._clock.now += self._seconds


class Watchmaker:
    """The clock of the herald."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Watchmaker:
    clock = Watchmaker()
    monkeypatch.setattr(herald_module, "time", clock)
    return clock


async def test_what_happens_in_one_turn_is_told_once_and_right_after_it(clock: Watchmaker) -> None:
    herald = Herald()
    tails = [Tail(1, herald), Tail(1, herald)]
    listening = [Listening(tail, clock) for tail in tails]
    for tail in tails:
        tail.extend([b"a"])
        tail.extend([b"b"])
    assert [one.seen for one in listening] == [[], []]
    await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[2], [2]]
    tails[0].extend([b"c"], close=True)
    await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[2, 3], [2]]


async def test_a_round_that_took_long_is_followed_by_a_rest_in_which_events_gather(
    clock: Watchmaker,
) -> None:
    herald = Herald()
    tail = Tail(1, herald)
    slow = Listening(tail, clock, seconds=0.08)
    tail.extend([b"a"])
    await asyncio.sleep(0)
    assert slow.seen == [1]
    slow.told.clear()
    for frame in b"b", b"c", b"d":
        tail.extend([frame])
        await asyncio.sleep(0)
    assert slow.seen == [1], "it rests"
    async with asyncio.timeout(20):
        await slow.told.wait()
    assert slow.seen == [1, 4]


async def test_nobody_is_told_for_a_tail_that_nobody_listens_to(clock: Watchmaker) -> None:
    herald = Herald()
    alone, other = Tail(1, herald), Tail(1, herald)
    listening = Listening(other, clock)
    alone.extend([b"a"])
    other.extend([b"a"])
    other.unsubscribe(listening)
    await asyncio.sleep(0)
    assert listening.seen == []
