"""The order and the time slices in which listeners are notified."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.ids import Seq
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
    monkeypatch.setattr(notifier_module, "_CALLS_PER_CLOCK_CHECK", 1)
    return clock


class RecordingListener:
    """Records the last seq of a tail at each notification."""

    def __init__(self, tail: Tail, clock: Clock) -> None:
        self.seen: list[int] = []
        self.tail = tail
        self._clock = clock
        tail.subscribe(self)

    def __call__(self) -> None:
        self.seen.append(self.tail.last_seq)
        self._clock.now += 0.001


async def notifier_that_just_ran(clock: Clock) -> Notifier:
    notifier = Notifier()
    tail = Tail(Seq(1), notifier)
    RecordingListener(tail, clock)
    tail.extend([b"a"])
    await asyncio.sleep(0)
    return notifier


async def test_the_changes_of_one_tick_are_one_notification_in_the_next_tick(clock: Clock) -> None:
    notifier = Notifier()
    tails = [Tail(Seq(1), notifier), Tail(Seq(1), notifier)]
    listeners = [RecordingListener(tail, clock) for tail in tails]
    for tail in tails:
        tail.extend([b"a"])
        tail.extend([b"b"])
    assert [one.seen for one in listeners] == [[], []]
    await asyncio.sleep(0)
    assert [one.seen for one in listeners] == [[2], [2]]
    clock.now += 1.0
    tails[0].extend([b"c"], close=True)
    await asyncio.sleep(0)
    assert [one.seen for one in listeners] == [[2, 3], [2]]


async def test_a_tick_notifies_some_listeners_and_later_ones_see_everything_since(
    clock: Clock,
) -> None:
    tail = Tail(Seq(1), await notifier_that_just_ran(clock))
    listeners = [RecordingListener(tail, clock) for _ in range(3)]
    for frame in b"a", b"b", b"c", b"d":
        tail.extend([frame])
        await asyncio.sleep(0)
    assert [one.seen for one in listeners] == [[1, 4], [2], [3]]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [one.seen for one in listeners] == [[1, 4], [2, 4], [3, 4]]


async def test_notifications_get_as_much_time_as_the_other_callbacks_took(clock: Clock) -> None:
    tail = Tail(Seq(1), await notifier_that_just_ran(clock))
    listeners = [RecordingListener(tail, clock) for _ in range(20)]
    tail.extend([b"a"])
    calls = []
    for others_ms in (0, 5, 0, 1, 2, 0):
        clock.now += others_ms / 1000
        await asyncio.sleep(0)
        calls.append(sum(len(one.seen) for one in listeners))
    assert calls == [1, 6, 7, 8, 10, 11]


async def test_a_listener_with_constant_changes_does_not_delay_the_others(clock: Clock) -> None:
    notifier = await notifier_that_just_ran(clock)
    tails = [Tail(Seq(1), notifier), Tail(Seq(1), notifier)]
    busy, quiet = [RecordingListener(tail, clock) for tail in tails]
    busy.tail.extend([b"a"])
    quiet.tail.extend([b"a"])
    for _ in range(2):
        await asyncio.sleep(0)
        busy.tail.extend([b"b"])
    assert quiet.seen == [1]


async def test_a_tail_without_listeners_notifies_nobody(clock: Clock) -> None:
    notifier = Notifier()
    alone, other = Tail(Seq(1), notifier), Tail(Seq(1), notifier)
    listener = RecordingListener(other, clock)
    alone.extend([b"a"])
    other.extend([b"a"])
    other.unsubscribe(listener)
    await asyncio.sleep(0)
    assert listener.seen == []


async def test_a_listener_unsubscribed_by_an_earlier_one_is_not_notified(clock: Clock) -> None:
    tail = Tail(Seq(1), Notifier())
    later = RecordingListener(tail, clock)
    tail.unsubscribe(later)
    tail.subscribe(lambda: tail.unsubscribe(later))
    tail.subscribe(later)
    tail.extend([b"a"])
    await asyncio.sleep(0)
    assert later.seen == []
