from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bench.faults.history import decoded
from reattach.domain.errors import FencedError, LimitExceededError, StoreUnavailableError
from reattach.domain.events import Event, Output, Place, Stopped, StopReason, Usage
from reattach.domain.ids import Seq, Token, new_message_id, new_run_id, new_step_id
from reattach.domain.limits import APPEND_RETRY_SECONDS, PENDING_APPEND_BYTES
from reattach.domain.messages import TextPart
from reattach.log import run_writer
from reattach.log.base import RunWriter
from reattach.log.memory import MemoryLog
from reattach.wire.letta import Encoder
from reattach.wire.sse import split_frames
from tests.support.clocks import NOON, LeapClock
from tests.support.faulty_stores import Faults, FaultyLog, FaultyRunWriter, Gate, Outage
from tests.support.received import Received

RUN = new_run_id()
PLACE = Place(new_message_id(), new_step_id(), 0, NOON)
END = (Stopped(StopReason.END_TURN), Usage())


def texts(*values: str) -> list[Output]:
    return [Output(PLACE, (TextPart(text),)) for text in values]


class Failures:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


class Writing:
    """The writer of one run and the encoder of its events, as a driver has them."""

    def __init__(self, writer: RunWriter, clock: LeapClock | None = None) -> None:
        self.writer = writer
        self.failures = Failures()
        self._encoder = Encoder(RUN)
        writer.clock = clock or LeapClock()
        writer.on_failure = self.failures

    def frames(self, events: Sequence[Event]) -> list[bytes]:
        return self._encoder.frames(events, after_seq=self.writer.last_seq)

    def put(self, events: Sequence[Event]) -> None:
        self.writer.put(self.frames(events))

    async def close(self, events: Sequence[Event]) -> None:
        await self.writer.close(self.frames(events))


async def open_writer(
    faults: Faults | None = None, clock: LeapClock | None = None
) -> tuple[MemoryLog, Writing, Failures]:
    log = MemoryLog()
    await log.open(RUN, Token(1))
    head = await log.head(RUN)
    writing = Writing(FaultyLog(log, faults or Faults()).writer(RUN, Token(1), head), clock)
    return log, writing, writing.failures


async def read_frames(log: MemoryLog) -> list[bytes]:
    return split_frames((await log.read(RUN, Seq(0), max_bytes=2**40, max_events=2**40)).frames)


@pytest.mark.promise("P1", "P3")
async def test_events_are_numbered_in_order_and_the_last_ones_close_the_log() -> None:
    log, writing, _ = await open_writer()
    writing.put(texts("a", "b"))
    await asyncio.sleep(0)
    writing.put([])
    writing.put(texts("c"))
    async with asyncio.timeout(5):
        await writing.close(END)
    whole = Received()
    whole.feed(b"".join(await read_frames(log)))
    assert whole.text == "abc"
    assert whole.kinds[-2:] == ["stop_reason", "usage_statistics"]
    assert (await log.head(RUN)).closed


@pytest.mark.promise("P1")
async def test_an_event_that_cannot_be_encoded_uses_no_seq() -> None:
    """A2: seqs, positions in the log and the caller's count agree."""
    log, writing, _ = await open_writer()
    writing.put(texts("a"))
    with pytest.raises(UnicodeEncodeError):
        writing.put(texts("b", "\ud83d", "c"))
    assert writing.writer.last_seq == 1
    async with asyncio.timeout(5):
        await writing.close(END)
    assert [decoded(frame)["seq_id"] for frame in await read_frames(log)] == [1, 2, 3]


async def test_events_put_during_an_append_make_the_next_append() -> None:
    sizes: list[int] = []

    class Weighing(FaultyRunWriter):
        async def append(
            self, first_seq: int, frames: Sequence[bytes], *, close: bool = False
        ) -> None:
            sizes.append(len(frames))
            await super().append(Seq(first_seq), frames, close=close)

    gate = Gate("log.append")
    writing = Writing(Weighing(await MemoryLog().open(RUN, Token(1)), gate))
    writing.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        writing.put(texts("b"))
        writing.put(texts("c", "d"))
        gate.opened.set()
        await writing.close(END)
    assert sizes == [1, 5]


@pytest.mark.promise("P12")
async def test_wait_for_room_waits_while_too_much_is_pending() -> None:
    gate = Gate("log.append")
    _, writing, _ = await open_writer(gate)
    writing.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        await writing.writer.wait_for_room()
        writing.put(texts("x" * PENDING_APPEND_BYTES))
        waiting = asyncio.create_task(writing.writer.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.opened.set()
        await waiting
        await writing.close(END)


@pytest.mark.promise("P12", "P3")
async def test_a_full_log_accepts_only_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "RUN_LOG_BYTES", 1000)
    log, writing, _ = await open_writer()
    writing.put(texts("x" * 1000))
    with pytest.raises(LimitExceededError):
        writing.put(texts("more"))
    async with asyncio.timeout(5):
        await writing.close(END)
    kinds = [decoded(frame)["message_type"] for frame in await read_frames(log)]
    assert kinds == ["assistant_message", "stop_reason", "usage_statistics"]


@pytest.mark.promise("P2")
@pytest.mark.parametrize("loses_answers", [False, True])
async def test_a_failed_append_is_retried_until_it_succeeds(loses_answers: bool) -> None:
    outage = Outage("log.append", loses_answers=loses_answers, lasts=4)
    log, writing, failures = await open_writer(outage)
    writing.put(texts("a"))
    async with asyncio.timeout(5):
        await outage.refused.wait()
        writing.put(texts("b"))
        await writing.close(END)
    assert outage.attempts == 4
    assert failures.count == 0
    assert [decoded(frame)["seq_id"] for frame in await read_frames(log)] == [1, 2, 3, 4]


async def test_retries_end_with_one_call_of_on_failure() -> None:
    clock = LeapClock()
    outage = Outage("log.append", "log.close")
    log, writing, failures = await open_writer(outage, clock)
    writing.put(texts("a"))
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError):
            await writing.close(END)
        with pytest.raises(StoreUnavailableError):
            await writing.writer.wait_for_room()
    assert clock.passed_seconds >= APPEND_RETRY_SECONDS
    assert failures.count == 1
    assert await read_frames(log) == []


@pytest.mark.promise("P7")
async def test_an_owner_with_an_old_token_is_refused_immediately_and_permanently() -> None:
    log, writing, failures = await open_writer()
    writing.put(texts("mine"))
    async with asyncio.timeout(5):
        while (await log.head(RUN)).last_seq < 1:
            await asyncio.sleep(0)
        await log.open(RUN, Token(2))
        writing.put(texts("late"))
        with pytest.raises(FencedError):
            await writing.close(END)
        with pytest.raises(FencedError):
            await writing.writer.wait_for_room()
    assert failures.count == 1
    writing.put(texts("later still"))
    await writing.writer.abandon()
    assert [decoded(frame)["content"] for frame in await read_frames(log)] == ["mine"]


async def test_an_abandoned_writer_stops_appending() -> None:
    gate = Gate("log.append")
    log, writing, failures = await open_writer(gate)
    writing.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        await writing.writer.abandon()
    gate.opened.set()
    await asyncio.sleep(0)
    assert await read_frames(log) == []
    assert failures.count == 0
