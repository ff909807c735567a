"""Closed runs on Redis that are read in a process that did not write them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from reattach.domain.errors import LogClosedError, TrimmedError
from reattach.domain.errors.stores import EventsLostError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Tail
from reattach.log.redis import follower, log
from reattach.log.redis.connections import Connections
from reattach.log.redis.follower import Follower
from reattach.log.redis.log import RedisLog
from reattach.log.redis.pages import page_of
from reattach.log.redis.read_ahead import ReadAhead
from reattach.log.redis.run_state import LocalRun
from reattach.log.redis.scripts import TRIM
from reattach.runs.following.follow import follow
from tests.support.redis_server import shared_url

FRAMES = [b"data: %d\n\n" % number * (1 + number % 3) for number in range(1, 200)]


@pytest.fixture
async def reader() -> AsyncIterator[RedisLog]:
    """A log that has followed nothing; another one wrote the runs ``large`` and ``small``.

    The first one consists of few appends, the second one of an append for each event.
    """
    prefix = uuid4().hex
    async with AsyncExitStack() as stack:
        logs = [await RedisLog.connect(shared_url(), prefix=prefix) for _ in range(2)]
        for one in logs:
            stack.push_async_callback(one.aclose)
        for run, count in (("large", 70), ("small", 1)):
            writer = await logs[0].open(run, Token(1))
            for at in range(0, len(FRAMES), count):
                await writer.append(Seq(at + 1), FRAMES[at : at + count])
            await writer.append(Seq(len(FRAMES) + 1), [], close=True)
        yield logs[1]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Seq]:
    """The cursors after which Redis was asked for frames."""
    cursors: list[Seq] = []
    read = Follower.read

    async def noted(self: Follower, run_id: str, after_seq: Seq, **bounds: Any) -> Any:
        cursors.append(after_seq)
        return await read(self, run_id, after_seq, **bounds)

    monkeypatch.setattr(Follower, "read", noted)
    return cursors


async def read_all(reader: RedisLog, run: str, tail: Tail, after: int = 0) -> bytes:
    frames = b""
    while after < tail.last_seq:
        cut = await reader.read(run, Seq(after), max_bytes=500, max_events=1000)
        assert len(cut.frames) <= 500
        frames, after = frames + cut.frames, cut.last_seq
    return frames


@pytest.mark.parametrize("run", ["large", "small"])
async def test_the_first_reader_gets_pages_and_the_run_is_not_loaded(
    reader: RedisLog, reads: list[Seq], run: str
) -> None:
    async with reader.follow(run) as tail:
        assert (tail.closed, tail.size_bytes, reads) == (True, 0, [])
        assert await read_all(reader, run, tail) == b"".join(FRAMES)
        assert len(reads) == 2  # A slice, and a page with everything else.
        assert tail.size_bytes == 0


@pytest.mark.parametrize("run", ["large", "small"])
async def test_the_second_slice_of_a_second_reader_loads_the_run_for_all_readers(
    reader: RedisLog, reads: list[Seq], run: str
) -> None:
    async with reader.follow(run) as tail:
        await reader.read(run, Seq(0), max_bytes=500, max_events=1000)
        reads.clear()
        assert await read_all(reader, run, tail) == b"".join(FRAMES)
        assert reads == [0, 0]  # A slice, and everything.
        assert (tail.first_seq, tail.size_bytes) == (1, sum(map(len, FRAMES)))
        assert await read_all(reader, run, tail, 100) == b"".join(FRAMES[100:])
        assert len(reads) == 2


async def test_readers_of_one_run_at_different_places_get_what_they_ask_for(
    reader: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOAD_BYTES", 1000)  # Else it would be loaded.
    places, expected = [0, 50, 120], b"".join(FRAMES)
    got = [b"", b"", b""]
    async with reader.follow("small") as tail:
        while min(places) < tail.last_seq:
            for index, after in enumerate(places):
                cut = await reader.read("small", Seq(after), max_bytes=200, max_events=7)
                assert len(cut.frames) <= 200
                assert cut.last_seq - after <= 7
                got[index], places[index] = got[index] + cut.frames, cut.last_seq
    assert [expected.endswith(frames) for frames in got] == [True, True, True]
    assert got[0] == expected


async def test_a_page_is_dropped_with_its_last_reader_and_there_are_few(reader: RedisLog) -> None:
    async with reader.follow("small"):
        run = reader.follower.local_run("small")
        assert run is not None
        for after in (0, 1):
            await reader.read("small", Seq(after), max_bytes=1, max_events=1)
        assert reader.read_ahead.slice(run, Seq(2), max_bytes=1, max_events=1) is not None
    assert reader.read_ahead.slice(run, Seq(3), max_bytes=1, max_events=1) is None
    pages = ReadAhead()
    runs = [LocalRun(f"run-{number}", b"", Tail()) for number in range(100)]
    for one in runs:
        bodies = [b"\1\0\0\0a", b"\1\0\0\0b"]
        pages.put(one, page_of(Seq(1), bodies, after_seq=Seq(0)))
    kept = [pages.slice(one, Seq(0), max_bytes=1, max_events=1) is not None for one in runs]
    assert kept == [False] * 84 + [True] * 16


async def test_a_large_append_is_stored_in_small_entries_and_recognized_when_it_is_repeated(
    reader: RedisLog,
) -> None:
    frames = [b"%d." % number + b"x" * (number * 37 % 3000) for number in range(200)]
    frames[50] = b"y" * 100_000
    writer = await reader.open("split", Token(1))
    await writer.append(Seq(1), [b"first"])
    for _ in range(2):  # The second one is a retry.
        await writer.append(Seq(2), frames, close=True)
    with pytest.raises(LogClosedError):
        await writer.append(Seq(2), [*frames[:-1], b"other"], close=True)
    driver: Any = reader._client.driver
    entries = await driver.xrange(reader.keys.run("split")[1])
    sizes = [len(body) for _, fields in entries for body in fields.values()]
    assert len(sizes) > 5
    assert [size for size in sizes if size > 66_000] == [4 + len(frames[50])]
    async with reader.follow("split") as tail:
        assert tail.last_seq == 201
        for begin in (0, 1, 50, 51, 150, 200):
            after, got = begin, b""
            while after < tail.last_seq:
                cut = await reader.read("split", Seq(after), max_bytes=65536, max_events=70)
                got, after = got + cut.frames, cut.last_seq
            assert got == b"".join([b"first", *frames][begin:])


@pytest.mark.parametrize("run", ["large", "small"])
async def test_the_last_events_come_in_one_read_and_load_nothing_else(
    reader: RedisLog, reads: list[Seq], run: str
) -> None:
    async with reader.follow(run) as tail:
        assert await read_all(reader, run, tail, 190) == b"".join(FRAMES[190:])
        assert (reads, tail.size_bytes) == ([190], 0)


async def test_a_large_run_is_read_page_by_page(
    reader: RedisLog, reads: list[Seq], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOAD_BYTES", 1000)
    monkeypatch.setattr(log, "PAGE_BYTES", 1000)
    async with reader.follow("small") as tail:
        for _ in range(3):
            reads.clear()
            assert await read_all(reader, "small", tail) == b"".join(FRAMES)
            assert 4 <= len(reads) <= 6
        assert tail.size_bytes == 0


async def test_a_run_that_is_trimmed_between_two_slices_is_loaded_without_what_is_gone(
    reader: RedisLog,
) -> None:
    async with reader.follow("small") as tail:
        await reader.read("small", Seq(0), max_bytes=500, max_events=1000)
        await reader.trim("small", Seq(100))
        assert await read_all(reader, "small", tail, 99) == b"".join(FRAMES[99:])
        assert tail.first_seq == 100


async def test_the_first_reader_of_an_ended_run_asks_redis_once_before_its_first_event(
    reader: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    execute = Connections.execute

    async def noted(self: Connections, *command: Any) -> Any:
        nonlocal asked
        asked += command[0] == "EVALSHA"
        return await execute(self, *command)

    monkeypatch.setattr(Connections, "execute", noted)
    async with await follow(reader, "large", Seq(0), max_events=5, ended=True) as following:
        assert asked == 1
        piece = await following.read()
        assert (piece.frames, asked) == (b"".join(FRAMES[:5]), 1)
    async with await follow(reader, "large", Seq(5), max_events=5, ended=True) as following:
        assert (await following.read()).frames == b"".join(FRAMES[5:10])
    assert asked == 3  # A known run may have been trimmed meanwhile.


async def test_the_first_reader_of_an_ended_run_notices_what_is_gone_or_damaged(
    reader: RedisLog,
) -> None:
    bounds: dict[str, Any] = {"max_bytes": 500, "max_events": 1000}
    assert await reader.read_closed("nobody", Seq(0), **bounds) is None
    writer = await reader.open("open", Token(1))
    await writer.append(Seq(1), FRAMES[:1])
    assert await reader.read_closed("open", Seq(0), **bounds) is None
    await reader._client.run(TRIM, reader.keys.run("large"), [100])
    with pytest.raises(TrimmedError):
        await follow(reader, "large", Seq(98), max_events=5, ended=True)
    async with await follow(reader, "large", Seq(99), max_events=5, ended=True) as following:
        assert (await following.read()).frames == b"".join(FRAMES[99:104])
    driver: Any = reader._client.driver
    await driver.delete(reader.keys.run("small")[1])
    await driver.xadd(reader.keys.run("small")[1], {"f": b"damaged"}, id="1-0")
    with pytest.raises(EventsLostError):
        await follow(reader, "small", Seq(0), max_events=5, ended=True)


async def test_a_run_that_another_reader_follows_meanwhile_has_one_tail(reader: RedisLog) -> None:
    bounds: dict[str, Any] = {"max_bytes": 500, "max_events": 1000}
    reads = [reader.read_closed("large", Seq(0), **bounds) for _ in range(3)]
    found = await asyncio.gather(*reads)
    assert [one is None for one in found] == [False, True, True]
    async with reader.follow("large") as one, reader.follow("large") as two:
        assert one is two
        assert await read_all(reader, "large", one) == b"".join(FRAMES)
