"""Closed runs on Redis that are read in a process that did not write them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from reattach.domain.ids import Seq, Token
from reattach.log.base import Tail
from reattach.log.redis import follower
from reattach.log.redis.follower import Follower
from reattach.log.redis.log import RedisLog
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
        for log in logs:
            stack.push_async_callback(log.aclose)
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


async def read_all(log: RedisLog, run: str, tail: Tail, after: int = 0) -> bytes:
    frames = b""
    while after < tail.last_seq:
        cut = await log.read(run, Seq(after), max_bytes=500, max_events=1000)
        assert len(cut.frames) <= 500
        frames, after = frames + cut.frames, cut.last_seq
    return frames


@pytest.mark.parametrize("run", ["large", "small"])
async def test_the_second_slice_loads_the_rest_of_the_run_for_all_readers(
    reader: RedisLog, reads: list[Seq], run: str
) -> None:
    async with reader.follow(run) as tail:
        assert (tail.closed, tail.size_bytes, reads) == (True, 0, [])
        assert await read_all(reader, run, tail) == b"".join(FRAMES)
        assert reads == [0, 0]  # A slice, and everything.
        assert (tail.first_seq, tail.size_bytes) == (1, sum(map(len, FRAMES)))
        assert await read_all(reader, run, tail, 100) == b"".join(FRAMES[100:])
        assert len(reads) == 2


@pytest.mark.parametrize("run", ["large", "small"])
async def test_the_last_events_come_in_one_read_and_load_nothing_else(
    reader: RedisLog, reads: list[Seq], run: str
) -> None:
    async with reader.follow(run) as tail:
        assert await read_all(reader, run, tail, 190) == b"".join(FRAMES[190:])
        assert (reads, tail.size_bytes) == ([190], 0)


async def test_a_large_run_is_read_slice_by_slice(
    reader: RedisLog, reads: list[Seq], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOAD_BYTES", 1000)
    async with reader.follow("large") as tail:
        assert await read_all(reader, "large", tail) == b"".join(FRAMES)
        assert len(reads) > 5
        assert tail.size_bytes == 0


async def test_a_run_that_is_trimmed_between_two_slices_is_loaded_without_what_is_gone(
    reader: RedisLog,
) -> None:
    async with reader.follow("small") as tail:
        await reader.read("small", Seq(0), max_bytes=500, max_events=1000)
        await reader.trim("small", Seq(100))
        assert await read_all(reader, "small", tail, 99) == b"".join(FRAMES[99:])
        assert tail.first_seq == 100
