"""Readers of a silent run."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.engines import SteppedEngine
from tests.support.faulty_stores import Faults, FaultyLog
from tests.support.in_process_readers import Reader
from tests.support.stores import Stores

READERS = 30


@pytest.mark.promise("P13")
@pytest.mark.parametrize("by_get", [False, True])
async def test_idle_readers_send_no_requests_to_the_stores_and_share_one_timer(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, by_get: bool
) -> None:
    faults = Faults()
    engine = SteppedEngine("one ", "two ")
    service = stores.service_upon(faults, engine=engine, ping_interval_seconds=0.1)
    run = await service.send(stores.send(await stores.conversation(), "count"))
    engine.step()
    async with AsyncExitStack() as stack:
        pinged = await stack.enter_async_context(Reader(service, run, pings=True, by_get=by_get))
        readers = [
            await stack.enter_async_context(Reader(service, run, by_get=by_get))
            for _ in range(READERS)
        ]
        for reader in readers:
            await reader.until_seq(1)
        await pinged.until(lambda: pinged.received.pings >= 1)
        calls = dict(faults.calls)
        tasks = asyncio.all_tasks()
        timers: list[Any] = []
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(when: float, callback: Any, *args: Any, **options: Any) -> Any:
            timers.append(callback)
            return call_at(when, callback, *args, **options)

        monkeypatch.setattr(loop, "call_at", counted)
        await pinged.until(lambda: pinged.received.pings >= 4)
        monkeypatch.undo()
        assert dict(faults.calls) == calls
        assert asyncio.all_tasks() == tasks
        # Each round of the one timer, each ping's stall timer, and the wait of this test.
        assert len(timers) < READERS
        assert all(reader.received.pings == 0 for reader in readers)
        engine.step(2)
        for reader in readers:
            assert (await reader.to_end()).text == "one two "


@pytest.mark.promise("P13")
async def test_a_live_event_costs_one_append_for_any_number_of_readers(stores: Stores) -> None:
    faults = Faults()
    engine = SteppedEngine("one ", "two ")
    service = stores.service(log=FaultyLog(stores.log, faults), engine=engine)
    run = await service.send(stores.send(await stores.conversation(), "count"))
    async with AsyncExitStack() as stack:
        engine.step()
        readers = [
            await stack.enter_async_context(Reader(service, run, by_get=bool(number % 2)))
            for number in range(READERS)
        ]
        for reader in readers:
            await reader.until_seq(1)
        before = faults.calls.copy()
        engine.step()
        for reader in readers:
            await reader.until_seq(2)
        assert faults.calls - before == {"log.append": 1}
        engine.step()
        for reader in readers:
            await reader.to_end()


@pytest.mark.promise("P13")
async def test_the_timer_ends_with_its_last_reader(stores: Stores) -> None:
    service = stores.service(ping_interval_seconds=0.04)
    run = await service.send(stores.send(await stores.conversation(), "[hang=1]"))

    def timers() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "watch readers"]

    async with Reader(service, run) as first, Reader(service, run) as second:
        await first.until_seq(1)
        await second.until_seq(1)
        assert len(timers()) == 1
    (timer,) = timers()
    async with asyncio.timeout(10):
        await timer
    async with Reader(service, run) as third:
        await third.until_seq(1)
        assert len(timers()) == 1
    assert await service.cancel([run]) == {run.id: "cancelled"}


@pytest.mark.promise("P13", "S7")
async def test_a_ping_has_the_number_of_the_last_event_and_uses_none_of_its_own(
    stores: Stores,
) -> None:
    engine = SteppedEngine("one ", "two ")
    service = stores.service(engine=engine, ping_interval_seconds=0.04)
    run = await service.send(stores.send(await stores.conversation(), "count"))
    async with Reader(service, run, pings=True) as reader:
        await reader.until(lambda: reader.received.pings >= 1)
        engine.step()
        await reader.until_seq(1)
        await reader.until(lambda: reader.received.pings >= 3)
        engine.step(2)
        received = await reader.to_end()
    assert received.frames == await stores.frames(run)
