from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from reattach.domain.errors import CursorAheadError, ExpiredError, LogNotFoundError
from reattach.domain.ids import Seq, Token, new_run_id
from reattach.log.memory import MemoryLog
from reattach.runs.following.follow import Following, Watch, follow
from reattach.testing.conformance.log_samples import append

RUN = new_run_id()
FRAMES = [b"data: {%d}\n\n" % number for number in range(1, 11)]


async def log_of(count: int, *, closed: bool) -> MemoryLog:
    log = MemoryLog()
    await log.open(RUN, Token(1))
    await append(log, RUN, Token(1), 1, FRAMES[:count], close=closed)
    return log


async def entered(log: MemoryLog, cursor: int) -> None:
    async with await follow(log, RUN, Seq(cursor), max_events=10):
        pass


async def rest(following: Following) -> bytes:
    """All that there is at present."""
    read = b""
    while piece := (await following.read()).frames:
        read += piece
    return read


@pytest.mark.promise("P4")
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("cursor", range(-1, 11))
async def test_every_cursor_gives_exactly_what_follows_it(cursor: int, closed: bool) -> None:
    log = await log_of(10, closed=closed)
    async with await follow(log, RUN, Seq(cursor), max_events=3) as following:
        assert following.cursor == max(cursor, 0)
        assert await rest(following) == b"".join(FRAMES[max(cursor, 0) :])
        assert following.cursor == 10
        assert following.closed == closed


@pytest.mark.promise("P4", "P12")
@pytest.mark.parametrize(("max_events", "sizes"), [(4, [4, 4, 2]), (1, [1] * 10), (0, [1] * 10)])
async def test_a_read_gives_as_many_events_as_were_asked_for_at_most(
    max_events: int, sizes: list[int]
) -> None:
    log = await log_of(10, closed=True)
    async with await follow(log, RUN, Seq(0), max_events=max_events) as following:
        read = [len((await following.read()).frames.split(b"\n\n")) - 1 for _ in sizes]
        assert read == sizes
        assert (await following.read()).frames == b""


@pytest.mark.promise("P4", "P5")
async def test_a_cursor_past_the_end_is_at_the_end_of_a_closed_log_and_ahead_of_an_open_one() -> (
    None
):
    async with await follow(await log_of(3, closed=True), RUN, Seq(99), max_events=10) as following:
        assert following.cursor == 3
        assert following.closed
        assert await rest(following) == b""
    with pytest.raises(CursorAheadError) as caught:
        await entered(await log_of(3, closed=False), 4)
    assert caught.value.extra["last_seq"] == 3


@pytest.mark.promise("P5")
async def test_the_error_for_a_cursor_before_the_kept_events_names_the_earliest_event() -> None:
    log = await log_of(10, closed=False)
    await log.trim(RUN, Seq(5))
    with pytest.raises(ExpiredError) as caught:
        await entered(log, 3)
    assert caught.value.extra["earliest_seq"] == 5
    async with await follow(log, RUN, Seq(4), max_events=10) as following:
        assert await rest(following) == b"".join(FRAMES[4:])


@pytest.mark.promise("P5")
async def test_events_that_are_trimmed_under_a_reader_are_no_silent_gap() -> None:
    log = await log_of(10, closed=False)
    async with await follow(log, RUN, Seq(0), max_events=2) as following:
        await following.read()
        await log.trim(RUN, Seq(6))
        with pytest.raises(ExpiredError):
            await following.read()


async def test_following_a_log_that_does_not_exist_raises_log_not_found() -> None:
    with pytest.raises(LogNotFoundError):
        await entered(MemoryLog(), 0)


def woken_of(following: Following) -> asyncio.Event:
    """Set when the reader is woken."""
    woken = asyncio.Event()
    following.wake = woken.set
    return woken


@asynccontextmanager
async def watching(watch: Watch, following: Following, *, pings: bool) -> AsyncIterator[None]:
    watch.add(following, pings=pings)
    yield
    watch.remove(following)


def has_more(following: Following) -> bool:
    return following.has_more


async def test_a_reader_is_woken_by_events_by_the_end_and_by_the_loss_of_the_log() -> None:
    log = await log_of(1, closed=False)
    async with await follow(log, RUN, Seq(0), max_events=10) as following, asyncio.timeout(5):
        woken = woken_of(following)
        assert await rest(following) == FRAMES[0]
        assert has_more(following) is False
        await append(log, RUN, Token(1), 2, FRAMES[1:2])
        await woken.wait()
        assert has_more(following) is True
        assert await rest(following) == FRAMES[1]
        woken.clear()
        await log.aclose()
        await woken.wait()
        assert following.failure is not None
        assert not following.closed


class Sink:
    """Takes all events, or none."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.full = False

    def __call__(self, frames: bytes) -> bool:
        if not self.full:
            self.taken.append(frames)
        return not self.full


@pytest.mark.promise("P4")
async def test_events_go_into_a_sink_at_once_and_wake_nobody() -> None:
    log = await log_of(2, closed=False)
    readers = [Sink(), Sink()]
    async with (
        await follow(log, RUN, Seq(2), max_events=10) as first,
        await follow(log, RUN, Seq(2), max_events=10) as second,
    ):
        first.sink, second.sink = readers
        woken = woken_of(first)
        await append(log, RUN, Token(1), 3, FRAMES[2:4])
        await append(log, RUN, Token(1), 5, FRAMES[4:5])
        assert [sink.taken for sink in readers] == [[b"".join(FRAMES[2:4]), FRAMES[4]]] * 2
        assert readers[0].taken[0] is readers[1].taken[0]
        assert first.cursor == second.cursor == 5
        assert not woken.is_set()
        assert await rest(first) == b""


@pytest.mark.promise("P4", "P12")
async def test_what_a_sink_does_not_take_is_there_to_be_read() -> None:
    log = await log_of(1, closed=False)
    sink = Sink()
    async with await follow(log, RUN, Seq(1), max_events=2) as following:
        following.sink, woken = sink, woken_of(following)
        sink.full = True
        await append(log, RUN, Token(1), 2, FRAMES[1:3])
        assert woken.is_set()
        assert await rest(following) == b"".join(FRAMES[1:3])
        woken.clear()
        sink.full = False
        await append(log, RUN, Token(1), 4, FRAMES[3:6])
        assert woken.is_set(), "more than one write of this reader's replay"
        assert sink.taken == []
        assert await rest(following) == b"".join(FRAMES[3:6])


@pytest.mark.promise("P4")
async def test_a_sink_gets_nothing_before_what_its_reader_has_not_read() -> None:
    log = await log_of(3, closed=False)
    sink = Sink()
    async with await follow(log, RUN, Seq(1), max_events=10) as following:
        following.sink, woken = sink, woken_of(following)
        await append(log, RUN, Token(1), 4, FRAMES[3:4])
        assert sink.taken == [b"".join(FRAMES[1:4])]
        await log.trim(RUN, Seq(5))
        await append(log, RUN, Token(1), 5, FRAMES[4:5], close=True)
        assert woken.is_set(), "the end is for the reader"
        assert sink.taken == [b"".join(FRAMES[1:4])]
        assert await rest(following) == FRAMES[4]


async def test_a_reader_that_has_left_is_woken_no_more() -> None:
    log = await log_of(1, closed=False)
    async with await follow(log, RUN, Seq(0), max_events=10) as following:
        woken = woken_of(following)
    await append(log, RUN, Token(1), 2, FRAMES[1:2])
    assert not woken.is_set()


@pytest.mark.promise("S8")
async def test_a_reader_whose_wake_up_was_lost_is_woken_by_the_watch() -> None:
    log = await log_of(1, closed=False)
    watch = Watch(ping_interval_seconds=0.04)
    async with (
        await follow(log, RUN, Seq(1), max_events=10) as following,
        watching(watch, following, pings=False),
        asyncio.timeout(5),
    ):
        woken = woken_of(following)
        await append(log, RUN, Token(1), 2, FRAMES[1:2])
        woken.clear()  # the wake-up that is lost
        await woken.wait()
        assert not following.keepalive_due
        assert await rest(following) == FRAMES[1]


@pytest.mark.promise("S8")
async def test_a_reader_is_overlooked_only_if_it_stays_where_it_is_though_there_is_more() -> None:
    log = await log_of(1, closed=False)
    async with await follow(log, RUN, Seq(1), max_events=1) as following:
        assert [following.is_overlooked() for _ in range(2)] == [False, False]
        await append(log, RUN, Token(1), 2, FRAMES[1:3])
        assert [following.is_overlooked() for _ in range(3)] == [False, True, True]
        assert (await following.read()).last_seq == 2
        assert [following.is_overlooked() for _ in range(2)] == [False, True]
        assert (await following.read()).last_seq == 3
        assert [following.is_overlooked() for _ in range(2)] == [False, False]


@pytest.mark.promise("S7")
async def test_a_keepalive_is_due_after_silence_unless_a_write_is_under_way() -> None:
    log = await log_of(1, closed=False)
    watch = Watch(ping_interval_seconds=0.04)
    async with (
        await follow(log, RUN, Seq(1), max_events=10) as quiet,
        await follow(log, RUN, Seq(1), max_events=10) as writing,
        watching(watch, quiet, pings=True),
        watching(watch, writing, pings=True),
        asyncio.timeout(5),
    ):
        writing.quiet_since = None
        await woken_of(quiet).wait()
        assert quiet.keepalive_due
        assert not writing.keepalive_due
