"""Receivers that hang and do not delay the calls of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from reattach.domain.ids import TenantId, new_tenant_id
from reattach.domain.limits.outbound import (
    CALLBACK_BREAKER_FAILURES,
    CALLBACK_BREAKER_SECONDS,
    CALLBACKS_AT_ONCE,
    CALLBACKS_PER_RECEIVER,
    CALLBACKS_PER_TENANT,
)
from reattach.records.callbacks import Receiver
from reattach.records.records import Records
from reattach.webhooks.receivers import NO_ANSWER, CallbackResult, Receivers
from reattach.webhooks.sender import Callbacks
from reattach.webhooks.slots import CallbackSlots
from tests.support.live_server import WAIT_SECONDS
from tests.support.record_samples import (
    HandClock,
    World,
    a_message,
    a_run,
    a_settlement,
    a_world,
    at,
)
from tests.support.records_files import open_records

HOSTILE, HONEST = new_tenant_id(), new_tenant_id()


@pytest.fixture
def clock() -> HandClock:
    clock = HandClock()
    clock.time = at(60)
    return clock


@pytest.fixture
async def records(tmp_path: Path, clock: HandClock) -> AsyncIterator[Records]:
    records = await open_records(tmp_path, clock)
    yield records
    await records.aclose()


async def ended(records: Records, tenant: TenantId, *urls: str) -> None:
    world: World = await a_world(records, tenant)
    for url in urls:
        run = a_run(world.thread, tenant, callback_url=url)
        await records.runs.create(tenant, run, None, ())
        assert await records.runs.settle(run.id, a_settlement(a_message("hi", run_id=run.id)))


class Silence(Receivers):
    """Start hosts that accept connections and send no answer until the test releases them."""

    def __init__(self) -> None:
        super().__init__(to_private=True)
        self.over = asyncio.Event()
        self.is_answering = False
        self.called: list[str] = []

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> CallbackResult:
        self.called.append(url)
        if "honest" not in url:
            await self.over.wait()
            if not self.is_answering:
                return CallbackResult(None, NO_ANSWER, is_final=False)
        return CallbackResult(200, None, is_final=True)


async def finished(calls: Sequence[asyncio.Task[None]]) -> int:
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*calls)
    return len(calls)


async def made(receivers: Silence, url: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while url not in receivers.called:
            await asyncio.sleep(0.001)


@pytest.mark.promise("P16")
async def test_receivers_of_one_tenant_that_hang_do_not_delay_those_of_another(
    records: Records, clock: HandClock
) -> None:
    """D4: the second is called at once, however many calls of the first wait."""
    urls = [f"http://{number}.hanging.example/" for number in range(CALLBACKS_AT_ONCE + 20)]
    await ended(records, HOSTILE, *urls)
    clock.time += timedelta(seconds=1)
    await ended(records, HONEST, "http://honest.example/")
    receivers = Silence()
    callbacks = Callbacks(records, clock, receivers)
    calls = await callbacks.start_due()
    await made(receivers, "http://honest.example/")
    assert len(calls) == CALLBACKS_PER_TENANT + 1
    receivers.over.set()
    await finished(calls)


async def test_a_host_that_hangs_leaves_slots_for_the_other_hosts_of_its_tenant(
    records: Records, clock: HandClock
) -> None:
    """D4: one host gets only a part of its tenant's slots."""
    await ended(records, HONEST, *["http://hanging.example/"] * 20, "http://honest.example/")
    receivers = Silence()
    calls = await Callbacks(records, clock, receivers).start_due()
    await made(receivers, "http://honest.example/")
    assert len(calls) == CALLBACKS_PER_RECEIVER + 1
    receivers.over.set()
    await finished(calls)


async def test_a_silent_host_is_skipped_and_then_probed_by_one_call(
    records: Records, clock: HandClock
) -> None:
    """D4: its calls stay due, and all are made once it answers."""
    await ended(records, HONEST, *[f"http://hanging.example/{number}" for number in range(6)])
    receivers = Silence()
    receivers.over.set()
    callbacks = Callbacks(records, clock, receivers)
    assert await finished(await callbacks.start_due()) == CALLBACKS_PER_RECEIVER
    clock.time += timedelta(seconds=5)
    assert await finished(await callbacks.start_due()) == 0
    clock.time += timedelta(seconds=2 * CALLBACK_BREAKER_SECONDS)
    receivers.is_answering = True
    assert await finished(await callbacks.start_due()) == 1
    while await finished(await callbacks.start_due()):
        pass
    assert len(set(receivers.called)) == 6


RECEIVER = Receiver(HONEST, "one.example")


def silent_slots(clock: HandClock, failures: int) -> CallbackSlots:
    slots = CallbackSlots(clock)
    for _ in range(failures):
        slots.note(RECEIVER, has_answered=False)
    return slots


def test_the_wait_for_a_silent_host_doubles_until_it_answers(clock: HandClock) -> None:
    """D4: half-open, then closed again."""
    slots = silent_slots(clock, CALLBACK_BREAKER_FAILURES)
    assert list(slots.room().closed_receivers) == [RECEIVER]
    for wait_seconds in (CALLBACK_BREAKER_SECONDS, 2 * CALLBACK_BREAKER_SECONDS):
        clock.time += timedelta(seconds=wait_seconds)
        assert slots.take(RECEIVER)
        assert not slots.take(RECEIVER)
        slots.note(RECEIVER, has_answered=False)
        slots.give_back(RECEIVER)
        assert not slots.take(RECEIVER)
    clock.time += timedelta(seconds=4 * CALLBACK_BREAKER_SECONDS)
    slots.note(RECEIVER, has_answered=True)
    assert all(slots.take(RECEIVER) for _ in range(CALLBACKS_PER_RECEIVER))
    assert list(slots.room().closed_receivers) == [RECEIVER]


def test_a_silent_host_of_one_tenant_is_called_for_another(clock: HandClock) -> None:
    """D4: a tenant cannot close a host that others use too."""
    slots = silent_slots(clock, 10)
    assert slots.take(Receiver(HOSTILE, RECEIVER.host))
    assert not slots.take(RECEIVER)


def test_released_slots_are_available_again(clock: HandClock) -> None:
    slots = CallbackSlots(clock)
    for _ in range(3):
        hosts = [Receiver(HONEST, str(number)) for number in range(CALLBACKS_PER_TENANT)]
        assert all(slots.take(receiver) for receiver in hosts)
        assert not slots.take(RECEIVER)
        assert list(slots.room().full_tenants) == [HONEST]
        for receiver in hosts:
            slots.give_back(receiver)
    assert slots.room().callbacks == CALLBACKS_AT_ONCE
