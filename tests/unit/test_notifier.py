"""When listeners are told: at once, in turn, and once for all that happened meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from reattach.log import notifier as notifier_module
from reattach.log.notifier import Notifier
from reattach.log.tail import Tail


class Clock:
    """The notifier's clock. A notification takes a millisecond of it, and all else no time."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(notifier_module, "time", clock)
    monkeypatch.setattr(notifier_module, "_AT_ONCE", 1)
    return clock


class Listening:
    """Notes what it saw of a tail whenever it was told."""

    def __init__(self, tail: Tail, clock: Clock) -> None:
        self.seen: list[int] = []
        self.tail = tail
        self._clock = clock
        tail.subscribe(self)

    def __call__(self) -> None:
        self.seen.append(self.tail.last_seq)
        self._clock.now += 0.001


async def notifier_that_just_ran(clock: Clock) -> Notifier:
    """One that has told somebody just now."""
    notifier = Notifier()
    tail = Tail(1, notifier)
    Listening(tail, clock)
    tail.extend([b"a"])
    await asyncio.sleep(0)
    return notifier


async def test_what_happens_in_one_turn_is_told_once_and_right_after_it(clock: Clock) -> None:
    notifier = Notifier()
    tails = [Tail(1, notifier), Tail(1, notifier)]
    listening = [Listening(tail, clock) for tail in tails]
    for tail in tails:
        tail.extend([b"a"])
        tail.extend([b"b"])
    assert [one.seen for one in listening] == [[], []]
    await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[2], [2]]
    clock.now += 1.0
    tails[0].extend([b"c"], close=True)
    await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[2, 3], [2]]


async def test_of_many_a_few_are_told_in_a_turn_and_each_sees_all_that_there_is_by_then(
    clock: Clock,
) -> None:
    tail = Tail(1, await notifier_that_just_ran(clock))
    listening = [Listening(tail, clock) for _ in range(3)]
    for frame in b"a", b"b", b"c", b"d":
        tail.extend([frame])
        await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[1, 4], [2], [3]]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [one.seen for one in listening] == [[1, 4], [2, 4], [3, 4]]


async def test_who_is_told_is_told_for_as_long_as_others_have_had_the_loop(clock: Clock) -> None:
    tail = Tail(1, await notifier_that_just_ran(clock))
    listening = [Listening(tail, clock) for _ in range(20)]
    tail.extend([b"a"])
    told = []
    for others_ms in (0, 5, 0, 1, 2, 0):
        clock.now += others_ms / 1000
        await asyncio.sleep(0)
        told.append(sum(len(one.seen) for one in listening))
    assert told == [1, 6, 7, 8, 10, 11]


async def test_one_who_has_news_all_the_time_takes_no_turn_from_the_others(clock: Clock) -> None:
    notifier = await notifier_that_just_ran(clock)
    tails = [Tail(1, notifier), Tail(1, notifier)]
    busy, quiet = [Listening(tail, clock) for tail in tails]
    busy.tail.extend([b"a"])
    quiet.tail.extend([b"a"])
    for _ in range(2):
        await asyncio.sleep(0)
        busy.tail.extend([b"b"])
    assert quiet.seen == [1]


async def test_nobody_is_told_for_a_tail_that_nobody_listens_to(clock: Clock) -> None:
    notifier = Notifier()
    alone, other = Tail(1, notifier), Tail(1, notifier)
    listening = Listening(other, clock)
    alone.extend([b"a"])
    other.extend([b"a"])
    other.unsubscribe(listening)
    await asyncio.sleep(0)
    assert listening.seen == []


async def test_one_whom_another_takes_away_in_its_turn_is_not_told(clock: Clock) -> None:
    tail = Tail(1, Notifier())
    later = Listening(tail, clock)
    tail.unsubscribe(later)
    tail.subscribe(lambda: tail.unsubscribe(later))
    tail.subscribe(later)
    tail.extend([b"a"])
    await asyncio.sleep(0)
    assert later.seen == []
