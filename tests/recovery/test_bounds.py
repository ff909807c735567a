"""Bounds of readers, engines and answers."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.events import RunStatus
from reattach.domain.limits import DELTA_BYTES, PENDING_APPEND_BYTES, REPLAY_TURN_BYTES
from reattach.log import run_writer
from reattach.runs import output
from tests.recovery.test_outages import run_ready_tasks
from tests.support.engines import EndlessEngine
from tests.support.faulty_stores import FaultyLog, Gate
from tests.support.in_process_readers import Reader
from tests.support.received import Received
from tests.support.stores import Stores


@pytest.mark.promise("P12")
async def test_a_reader_that_reads_nothing_is_disconnected_and_resumes_exactly(
    stores: Stores,
) -> None:
    service = stores.service()
    run = await service.send(stores.send(await stores.conversation(), "[chunks=2000]"))
    async with (
        Reader(service, run) as stalled,
        Reader(service, run) as other,
    ):
        await stalled.until_seq(10)
        stalled.taking.clear()
        stalled.stall()
        taken = await stalled.to_end()
        assert stalled.aborted
        assert not stalled.whole
        assert not taken.done
        whole = await other.to_end()
    assert whole.end()["stop_reason"] == "end_turn"
    assert not other.aborted
    assert taken.cursor < whole.cursor
    async with Reader(service, run, taken.cursor) as resumed:
        rest = await resumed.to_end()
    assert taken.frames + rest.frames == whole.frames == await stores.frames(run)


@pytest.mark.promise("P12")
async def test_a_reader_that_is_behind_gets_one_turn_of_a_replay_at_a_time(stores: Stores) -> None:
    service = stores.service()
    run = await service.send(stores.send(await stores.conversation(), "[chunks=1000][size=500]"))
    await service.wait_until_settled(run)
    sizes: list[int] = []

    class Weighing(Received):
        def feed(self, data: bytes) -> None:
            sizes.append(len(data))
            super().feed(data)

    reader = Reader(service, run)
    reader.received = Weighing()
    async with reader:
        assert (await reader.to_end()).done
    assert max(sizes) <= REPLAY_TURN_BYTES
    assert sum(sizes) > 2 * REPLAY_TURN_BYTES


@pytest.mark.promise("P12")
async def test_an_engine_waits_while_the_log_does_not_accept_its_events(stores: Stores) -> None:
    text = "x" * 10_000
    gate = Gate("log.append")
    engine = EndlessEngine(text)
    service = stores.service(log=FaultyLog(stores.log, gate), engine=engine)
    run = await service.send(stores.send(await stores.conversation(), "speak"))
    async with asyncio.timeout(10):
        await gate.waiting.wait()
        before = -1
        while engine.yielded != before:
            before = engine.yielded
            await run_ready_tasks()
    assert engine.yielded * len(text) <= 2 * PENDING_APPEND_BYTES
    async with Reader(service, run) as reader, asyncio.timeout(10):
        cancelling = asyncio.create_task(service.cancel([run]))
        await engine.closed.wait()
        gate.opened.set()
        assert await cancelling == {run.id: "cancelled"}
        assert (await reader.to_end()).text == text * before


@pytest.mark.promise("P12", "P3")
@pytest.mark.parametrize("stream_tokens", [True, False], ids=["in fragments", "as a whole"])
async def test_an_answer_without_end_ends_with_an_error(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, stream_tokens: bool
) -> None:
    limit = 200 * (DELTA_BYTES + 1000)
    monkeypatch.setattr(run_writer, "RUN_LOG_BYTES", limit)
    monkeypatch.setattr(output, "RUN_LOG_BYTES", limit)
    engine = EndlessEngine("x" * 1000)
    service = stores.service(engine=engine)
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "speak", stream_tokens=stream_tokens))
    async with Reader(service, run) as reader:
        received = await reader.to_end()
    assert received.end() == {"stop_reason": "error", "error_type": "internal_error"}
    assert sum(map(len, received.frames)) <= 2 * limit
    assert engine.closed.is_set()
    assert engine.yielded <= 202
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert f"{limit} bytes" in received.frames[-2].decode()
    await stores.assert_free(conversation)


@pytest.mark.promise("P12")
async def test_output_that_is_not_streamed_is_bounded_too(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "RUN_LOG_BYTES", 100_000)
    engine = EndlessEngine("x" * 1000)
    service = stores.service(engine=engine)
    send = stores.send(
        await stores.conversation(), "speak", message_types=frozenset({"reasoning_message"})
    )
    run = await service.send(send)
    async with Reader(service, run) as reader:
        received = await reader.to_end()
    assert received.kinds == ["stop_reason", "error_message", "usage_statistics"]
    assert engine.yielded * 1000 <= 110_000
