from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, update

from reattach.domain.ids import RunId, Token
from reattach.records.base import Beat
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.records import Records
from tests.support.record_samples import (
    OURS,
    THEIRS,
    HandClock,
    World,
    a_run,
    a_settlement,
    a_world,
    at,
    ids,
)

LEASE_SECONDS = 15.0


async def let_pass(seconds: float, clock: HandClock, url: str) -> None:
    """Make time pass for the owners: by the clock, or by moving their beats back."""
    if url.startswith("sqlite"):
        clock.time = at((clock.time - at(0)).total_seconds() + seconds)
        return
    database = await Database.open(url)
    beat_at = schema.owners.c.beat_at
    ago = func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    postponed = update(schema.owners).values(beat_at=beat_at - ago)
    await database.in_write(lambda connection: connection.execute(postponed))
    await database.aclose()


@pytest.mark.promise("P7")
async def test_an_owner_lives_while_it_beats_within_its_lease(
    records: Records, other_process: Records, clock: HandClock, url: str
) -> None:
    assert not await records.owners.is_alive("a")
    await records.owners.register("a", LEASE_SECONDS)
    for _ in range(3):
        await let_pass(10, clock, url)
        assert await other_process.owners.is_alive("a")
        assert await other_process.owners.bury() == []
        assert await records.owners.beat("a") == Beat(alive=True)
    await let_pass(16, clock, url)
    assert await other_process.owners.is_alive("a")
    assert await other_process.owners.bury() == ["a"]
    assert not await other_process.owners.is_alive("a")


@pytest.mark.promise("P7")
async def test_an_owner_with_an_expired_lease_is_buried_once_and_its_beat_says_so(
    records: Records, other_process: Records, clock: HandClock, url: str
) -> None:
    await records.owners.register("slow", 60)
    await records.owners.register("dead", LEASE_SECONDS)
    await let_pass(16, clock, url)
    stores = [records, other_process]
    async with asyncio.timeout(30):
        buried = await asyncio.gather(*(stores[n % 2].owners.bury() for n in range(8)))
    assert sorted(owner for found in buried for owner in found) == ["dead"]
    assert await records.owners.beat("dead") == Beat(alive=False)
    assert await records.owners.beat("nobody") == Beat(alive=False)
    assert await records.owners.beat("slow") == Beat(alive=True)


@pytest.mark.promise("P7")
async def test_a_late_beat_before_the_burial_renews_the_lease(
    records: Records, other_process: Records, clock: HandClock, url: str
) -> None:
    await records.owners.register("late", LEASE_SECONDS)
    await let_pass(100, clock, url)
    assert await records.owners.beat("late") == Beat(alive=True)
    assert await other_process.owners.bury() == []
    assert await other_process.owners.is_alive("late")


@pytest.mark.promise("P7")
async def test_a_late_beat_and_a_concurrent_burial_agree_on_the_outcome(
    records: Records, other_process: Records, clock: HandClock, url: str
) -> None:
    for number in range(10):
        owner = f"owner-{number}"
        await records.owners.register(owner, LEASE_SECONDS)
        await let_pass(16, clock, url)
        async with asyncio.timeout(30):
            beat, buried = await asyncio.gather(
                records.owners.beat(owner), other_process.owners.bury()
            )
        assert beat.alive is (owner not in buried)
        assert await records.owners.is_alive(owner) is beat.alive


async def test_registering_again_renews_the_lease(
    records: Records, clock: HandClock, url: str
) -> None:
    await records.owners.register("a", LEASE_SECONDS)
    await let_pass(16, clock, url)
    await records.owners.register("a", 60)
    assert await records.owners.is_alive("a")
    await let_pass(50, clock, url)
    assert await records.owners.bury() == []


@pytest.mark.promise("P6")
async def test_a_beat_returns_the_requested_cancels_of_the_owners_runs(
    world: World, other_process: Records
) -> None:
    owners = world.records.owners
    await owners.register("process-1", LEASE_SECONDS)
    await owners.register("process-2", LEASE_SECONDS)
    run = await world.start()
    other = await world.start(world.default, owner="process-2")
    assert await owners.beat("process-1") == Beat(alive=True, held=(run.id,))
    await other_process.runs.request_cancel(OURS, [run.id, other.id])
    for _ in range(2):
        assert await owners.beat("process-1") == Beat(
            alive=True, held=(run.id,), cancelled=(run.id,)
        )
    await world.records.runs.settle(run.id, a_settlement())
    assert await owners.beat("process-1") == Beat(alive=True)
    beat = Beat(alive=True, held=(other.id,), cancelled=(other.id,))
    assert await owners.beat("process-2") == beat


async def test_an_owner_leaves_when_its_runs_have_ended(world: World) -> None:
    owners = world.records.owners
    await owners.register("process-1", LEASE_SECONDS)
    run = await world.start()
    assert not await owners.leave("process-1")
    assert await owners.is_alive("process-1")
    await world.records.runs.settle(run.id, a_settlement())
    assert await owners.leave("process-1")
    assert not await owners.is_alive("process-1")
    assert await owners.leave("process-1")


async def test_a_single_process_buries_all_others_whatever_their_lease(records: Records) -> None:
    for owner in ("a", "b", "c"):
        await records.owners.register(owner, 1000)
    assert sorted(await records.owners.bury_all_but("b")) == ["a", "c"]
    assert [await records.owners.is_alive(owner) for owner in "abc"] == [False, True, False]


@pytest.mark.promise("P7")
async def test_orphans_are_the_active_runs_of_all_tenants_whose_owner_is_not_registered(
    world: World, clock: HandClock, url: str
) -> None:
    runs, owners = world.records.runs, world.records.owners
    await owners.register("process-1", LEASE_SECONDS)
    await owners.register("process-2", 1000)
    theirs = await a_world(world.records, THEIRS)
    await world.turn("ended")
    orphan = await world.start()
    await world.start(world.default, owner="process-2")
    foreign = a_run(theirs.thread, THEIRS)
    await runs.create(THEIRS, foreign, None, ())
    assert await runs.mark_running(foreign.id, Token(1))
    await let_pass(16, clock, url)
    assert await runs.orphans(10) == []
    assert await owners.bury() == ["process-1"]
    assert ids(await runs.orphans(10)) == [orphan.id, foreign.id]
    assert ids(await runs.orphans(1)) == [orphan.id]
    assert await runs.take_over([(RunId(orphan.id), Token(1))], "process-2")
    assert ids(await runs.orphans(10)) == [foreign.id]
