from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from reattach.domain.errors import FencedError, LimitExceededError, StoreUnavailableError
from reattach.domain.events import Output, Place, Stopped, StopReason, Usage
from reattach.domain.ids import new_message_id, new_run_id, new_step_id
from reattach.domain.limits import APPEND_RETRY_SECONDS, PENDING_APPEND_BYTES
from reattach.domain.messages import TextPart
from reattach.log.memory import MemoryLog
from reattach.runs import appender as appender_module
from reattach.runs.appender import Appender
from reattach.testing.faults.history import decoded
from reattach.wire.sse import split_frames
from tests.support.clocks import NOON, LeapClock
from tests.support.faulty_stores import Faults, FaultyLog, Gate, Outage
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


async def open_appender(
    faults: Faults | None = None, clock: LeapClock | None = None
) -> tuple[MemoryLog, Appender, Failures]:
    log = MemoryLog()
    await log.open(RUN, 1)
    failures = Failures()
    appender = Appender(
        FaultyLog(log, faults or Faults()),
        RUN,
        1,
        last_seq=0,
        clock=clock or LeapClock(),
        on_failure=failures,
    )
    return log, appender, failures


async def read_frames(log: MemoryLog) -> list[bytes]:
    return split_frames((await log.read(RUN, 0, max_bytes=2**40, max_events=2**40)).frames)


@pytest.mark.promise("P1", "P3")
async def test_events_are_numbered_in_order_and_the_last_ones_close_the_log() -> None:
    log, appender, _ = await open_appender()
    appender.put(texts("a", "b"))
    await asyncio.sleep(0)
    appender.put([])
    appender.put(texts("c"))
    async with asyncio.timeout(5):
        await appender.close(END)
    whole = Received()
    whole.feed(b"".join(await read_frames(log)))
    assert whole.text == "abc"
    assert whole.kinds[-2:] == ["stop_reason", "usage_statistics"]
    assert (await log.head(RUN)).closed


@pytest.mark.promise("P1")
async def test_an_event_that_cannot_be_encoded_uses_no_seq() -> None:
    """A2: seqs, positions in the log and the caller's count agree."""
    log, appender, _ = await open_appender()
    appender.put(texts("a"))
    with pytest.raises(UnicodeEncodeError):
        appender.put(texts("b", "\ud83d", "c"))
    assert appender.last_seq == 1
    async with asyncio.timeout(5):
        await appender.close(END)
    assert [decoded(frame)["seq_id"] for frame in await read_frames(log)] == [1, 2, 3]


async def test_events_put_during_an_append_make_the_next_append() -> None:
    sizes: list[int] = []

    class Weighing(FaultyLog):
        async def append(
            self,
            run_id: str,
            token: int,
            first_seq: int,
            frames: Sequence[bytes],
            *,
            close: bool = False,
        ) -> None:
            sizes.append(len(frames))
            await super().append(run_id, token, first_seq, frames, close=close)

    log = MemoryLog()
    await log.open(RUN, 1)
    gate = Gate("log.append")
    appender = Appender(
        Weighing(log, gate), RUN, 1, last_seq=0, clock=LeapClock(), on_failure=Failures()
    )
    appender.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        appender.put(texts("b"))
        appender.put(texts("c", "d"))
        gate.opened.set()
        await appender.close(END)
    assert sizes == [1, 5]


@pytest.mark.promise("P12")
async def test_wait_for_room_waits_while_too_much_is_pending() -> None:
    gate = Gate("log.append")
    _, appender, _ = await open_appender(gate)
    appender.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        await appender.wait_for_room()
        appender.put(texts("x" * PENDING_APPEND_BYTES))
        waiting = asyncio.create_task(appender.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.opened.set()
        await waiting
        await appender.close(END)


@pytest.mark.promise("P12", "P3")
async def test_a_full_log_accepts_only_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender_module, "RUN_LOG_BYTES", 1000)
    log, appender, _ = await open_appender()
    appender.put(texts("x" * 1000))
    with pytest.raises(LimitExceededError):
        appender.put(texts("more"))
    async with asyncio.timeout(5):
        await appender.close(END)
    kinds = [decoded(frame)["message_type"] for frame in await read_frames(log)]
    assert kinds == ["assistant_message", "stop_reason", "usage_statistics"]


@pytest.mark.promise("P2")
@pytest.mark.parametrize("loses_answers", [False, True])
async def test_a_failed_append_is_retried_until_it_succeeds(loses_answers: bool) -> None:
    outage = Outage("log.append", loses_answers=loses_answers, lasts=4)
    log, appender, failures = await open_appender(outage)
    appender.put(texts("a"))
    async with asyncio.timeout(5):
        await outage.refused.wait()
        appender.put(texts("b"))
        await appender.close(END)
    assert outage.attempts == 4
    assert failures.count == 0
    assert [decoded(frame)["seq_id"] for frame in await read_frames(log)] == [1, 2, 3, 4]


async def test_retries_end_with_one_call_of_on_failure() -> None:
    clock = LeapClock()
    outage = Outage("log.append", "log.close")
    log, appender, failures = await open_appender(outage, clock)
    appender.put(texts("a"))
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError):
            await appender.close(END)
        with pytest.raises(StoreUnavailableError):
            await appender.wait_for_room()
    assert clock.passed_seconds >= APPEND_RETRY_SECONDS
    assert failures.count == 1
    assert await read_frames(log) == []


@pytest.mark.promise("P7")
async def test_an_owner_with_an_old_token_is_refused_immediately_and_permanently() -> None:
    log, appender, failures = await open_appender()
    appender.put(texts("mine"))
    async with asyncio.timeout(5):
        while (await log.head(RUN)).last_seq < 1:
            await asyncio.sleep(0)
        await log.open(RUN, 2)
        appender.put(texts("late"))
        with pytest.raises(FencedError):
            await appender.close(END)
        with pytest.raises(FencedError):
            await appender.wait_for_room()
    assert failures.count == 1
    appender.put(texts("later still"))
    await appender.abandon()
    assert [decoded(frame)["content"] for frame in await read_frames(log)] == ["mine"]


async def test_an_abandoned_appender_stops_appending() -> None:
    gate = Gate("log.append")
    log, appender, failures = await open_appender(gate)
    appender.put(texts("a"))
    async with asyncio.timeout(5):
        await gate.waiting.wait()
        await appender.abandon()
    gate.opened.set()
    await asyncio.sleep(0)
    assert await read_frames(log) == []
    assert failures.count == 0
