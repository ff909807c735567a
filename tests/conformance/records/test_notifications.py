from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from reattach.domain.ids import new_run_id
from reattach.records.records import Records
from reattach.records.runs.notifications import CancelRequested, Notification, RunSettled
from tests.support.postgresql_server import Databases
from tests.support.record_samples import OURS, World, a_settlement


@pytest.fixture(scope="module")
def shared_url(postgresql_databases: Databases) -> Iterator[str]:
    with postgresql_databases.with_schema() as url:
        yield url


async def next_of(notifications: AsyncIterator[Notification]) -> Notification:
    async with asyncio.timeout(10):
        return await anext(notifications)


@pytest.mark.promise("P6")
async def test_another_process_is_notified_of_a_cancel_and_of_the_end_and_finds_them_in_the_records(
    world: World, other_process: Records
) -> None:
    async with other_process.notifications() as notifications:
        run = await world.start()
        await world.records.runs.request_cancel(OURS, [run.id])
        assert await next_of(notifications) == CancelRequested(run.id)
        assert (await other_process.runs.get(OURS, run.id)).cancel_requested_at is not None
        await world.records.runs.settle(run.id, a_settlement())
        assert await next_of(notifications) == RunSettled(run.id)
        assert not (await other_process.runs.get(OURS, run.id)).status.is_active


async def test_a_repeated_cancel_is_notified_again_and_one_after_the_end_is_not(
    world: World,
) -> None:
    async with world.records.notifications() as notifications:
        run = await world.start()
        for _ in range(2):
            await world.records.runs.request_cancel(OURS, [run.id])
        await world.records.runs.settle(run.id, a_settlement())
        await world.records.runs.request_cancel(OURS, [run.id])
        assert not await world.records.runs.settle(new_run_id(), a_settlement())
        await world.start()
        last = await world.start(world.default)
        await world.records.runs.settle(last.id, a_settlement())
        heard = [await next_of(notifications) for _ in range(4)]
    asked = CancelRequested(run.id)
    assert heard == [asked, asked, RunSettled(run.id), RunSettled(last.id)]


async def test_every_process_receives_the_same_notifications(
    world: World, other_process: Records
) -> None:
    async with world.records.notifications() as ours, other_process.notifications() as theirs:
        run = await world.start()
        await world.records.runs.settle(run.id, a_settlement())
        assert await next_of(ours) == await next_of(theirs) == RunSettled(run.id)
