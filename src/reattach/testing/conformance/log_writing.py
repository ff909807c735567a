"""The tests of a run's writer, a part of ``LogConformance``."""

import asyncio

import pytest

from reattach.domain.errors import FencedError, LogClosedError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Log
from reattach.testing.conformance.log_reader import WAIT_SECONDS, read
from reattach.testing.conformance.log_samples import FRAMES, append


class WritingConformance:
    """Tests of ``put``, ``flush`` and ``close``."""

    @pytest.mark.promise("P1", "P2")
    async def test_flushed_frames_are_in_the_log_in_the_order_of_their_puts(self, log: Log) -> None:
        writer = await log.open("run", Token(1))
        async with asyncio.timeout(WAIT_SECONDS):
            await writer.flush()
            writer.put(FRAMES[:1])
            writer.put([])
            writer.put(FRAMES[1:4])
            await asyncio.sleep(0)
            writer.put(FRAMES[4:5])
            assert writer.last_seq == 5
            await writer.flush()
        assert await log.head("run") == Head(Seq(1), Seq(5), closed=False)
        assert await read(log, "run") == (1, FRAMES[:5])

    @pytest.mark.promise("P3")
    @pytest.mark.parametrize("count", [0, 1, 3])
    async def test_close_appends_what_was_put_before_the_last_frames(
        self, log: Log, count: int
    ) -> None:
        writer = await log.open("run", Token(1))
        writer.put(FRAMES[:2])
        async with asyncio.timeout(WAIT_SECONDS):
            await writer.close(FRAMES[2 : 2 + count])
        assert await log.head("run") == Head(Seq(1), Seq(2 + count), closed=True)
        assert await read(log, "run") == (1, FRAMES[: 2 + count])

    async def test_a_writer_continues_after_the_last_frame_of_the_log(self, log: Log) -> None:
        first = await log.open("run", Token(1))
        await first.append(Seq(1), FRAMES[:3])
        second = await log.open("run", Token(2))
        assert (second.head, second.last_seq) == (Head(Seq(1), Seq(3), closed=False), 3)
        second.put(FRAMES[3:4])
        async with asyncio.timeout(WAIT_SECONDS):
            await second.close()
        assert await read(log, "run") == (1, FRAMES[:4])

    @pytest.mark.promise("P7")
    async def test_a_writer_with_an_older_token_fails_once_and_for_good(self, log: Log) -> None:
        writer = await log.open("run", Token(1))
        failures: list[Exception | None] = []
        writer.on_failure = lambda: failures.append(writer.failure)
        await log.open("run", Token(2))
        writer.put(FRAMES[:1])
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(FencedError):
                await writer.flush()
            with pytest.raises(FencedError):
                await writer.close()
        writer.put(FRAMES[1:2])
        await asyncio.sleep(0)
        assert [type(failure) for failure in failures] == [FencedError]
        assert await log.head("run") == Head(Seq(1), Seq(0), closed=False)

    @pytest.mark.promise("P3")
    async def test_a_writer_of_a_log_that_another_one_closed_fails(self, log: Log) -> None:
        writer = await log.open("run", Token(1))
        await append(log, "run", Token(1), 1, FRAMES[:2], close=True)
        writer.put(FRAMES[5:6])
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(LogClosedError):
                await writer.close(FRAMES[6:7])
        assert await read(log, "run") == (1, FRAMES[:2])

    @pytest.mark.promise("P1")
    async def test_the_writers_of_many_runs_share_a_tick_without_mixing(self, log: Log) -> None:
        names = [f"run-{number}" for number in range(20)]
        frames = {name: [f"{name}:{seq}".encode() for seq in range(1, 11)] for name in names}
        writers = [await log.open(name, Token(1)) for name in names]
        for seq in range(9):
            for writer in writers:
                writer.put(frames[writer.run_id][seq : seq + 1])
            await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*(one.close(frames[one.run_id][9:]) for one in writers))
        for name in names:
            assert await read(log, name) == (1, frames[name])
