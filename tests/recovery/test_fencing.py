"""A fenced owner, which continues after its run was taken over."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.events import RunStatus
from reattach.domain.messages import Role
from tests.support.engines import SteppedEngine
from tests.support.faulty_stores import FaultyLog, Gate, faulty_records
from tests.support.in_process_readers import Reader
from tests.support.received import Received, end_of
from tests.support.stores import Stores


@pytest.mark.promise("P7", "P3")
async def test_a_fenced_owner_stops_its_engine_and_appends_nothing(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    engine = SteppedEngine("one ", "two ", "three ")
    zombie = stores.service(engine=engine)
    run = await zombie.send(stores.send(conversation, "count"))
    engine.step()
    async with Reader(zombie, run) as reader:
        await reader.until_seq(1)
        successor = stores.service()
        await successor.start()
        frames = await stores.frames(run)
        assert end_of(frames)["error_type"] == "stream_incomplete"
        engine.step()
        async with asyncio.timeout(10):
            await engine.closed.wait()
            await zombie.wait_until_settled(run)
        assert engine.yielded == 2
        assert (await reader.to_end()).frames == frames
    assert await stores.frames(run) == frames
    await zombie.recover()
    assert await stores.frames(run) == frames
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert await stores.kept(conversation) == [(Role.USER, "count"), (Role.ASSISTANT, "one ")]
    await stores.assert_free(conversation)


@pytest.mark.promise("P7", "P2")
async def test_pending_appends_of_a_fenced_owner_reach_no_reader(stores: Stores) -> None:
    gate = Gate("log.append", "log.close")
    engine = SteppedEngine("late ")
    zombie = stores.service(log=FaultyLog(stores.log, gate), engine=engine)
    run = await zombie.send(stores.send(await stores.conversation(), "speak"))
    engine.step()
    async with Reader(zombie, run) as reader, asyncio.timeout(10):
        await gate.waiting.wait()
        await stores.service().start()
        gate.opened.set()
        received = await reader.to_end()
        await engine.closed.wait()
    assert received.end() == {"stop_reason": "error", "error_type": "stream_incomplete"}
    assert received.text == ""
    assert received.frames == await stores.frames(run)


@pytest.mark.promise("P7", "P3")
async def test_a_fenced_owner_that_had_closed_its_log_does_not_settle_the_run_again(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    gate = Gate("runs.settle")
    zombie = stores.service(records=faulty_records(stores.records, gate))
    run = await zombie.send(stores.send(conversation, "one two"))
    async with asyncio.timeout(10):
        await gate.waiting.wait()
        await stores.service().start()
        settled = await stores.run(run)
        gate.opened.set()
        await zombie.wait_until_settled(run)
    assert settled.status is RunStatus.COMPLETED
    assert await stores.run(run) == settled
    assert await stores.kept(conversation) == [(Role.USER, "one two"), (Role.ASSISTANT, "one two")]


@pytest.mark.promise("P7")
async def test_the_cancel_of_a_run_without_an_owner_ends_it_at_once(stores: Stores) -> None:
    conversation = await stores.conversation()
    engine = SteppedEngine("one ", "two ")
    zombie = stores.service(engine=engine)
    run = await zombie.send(stores.send(conversation, "count"))
    engine.step()
    async with Reader(zombie, run) as reader:
        await reader.until_seq(1)
    successor = stores.service()
    assert await successor.cancel([run]) == {run.id: "cancelled"}
    assert await successor.cancel([run]) == {run.id: "cancelled"}
    engine.step(2)
    async with asyncio.timeout(10):
        await zombie.wait_until_settled(run)
    whole = Received()
    whole.feed(b"".join(await stores.frames(run)))
    assert end_of(whole.frames) == {"stop_reason": "cancelled", "error_type": None}
    assert whole.text == "one "
    await stores.assert_free(conversation)


@pytest.mark.promise("P6", "P7")
async def test_a_cancel_and_an_upkeep_that_end_an_orphan_concurrently_end_it_once(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    engine = SteppedEngine("one ")
    run = await stores.service(engine=engine).send(stores.send(conversation, "count"))
    async with asyncio.timeout(10):
        while await stores.head(run) is None:
            await asyncio.sleep(0)
        successor = stores.service()
        await asyncio.gather(
            successor.recover(),
            successor.cancel([run]),
            successor.recover(),
            successor.cancel([run]),
        )
    frames = await stores.frames(run)
    assert end_of(frames)["stop_reason"] == (await stores.run(run)).stop_reason
    await stores.assert_free(conversation)
