from __future__ import annotations

import asyncio
from datetime import timedelta

from reattach.domain.limits.outbound import (
    CALLBACK_SECRET_OVERLAP_SECONDS,
    CALLBACKS_PER_RECEIVER,
)
from reattach.records.base import Run
from reattach.records.callbacks import CallbackOutcome, DueCallback, Receiver, Room
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
)

URL = "https://receiver.example/done"
LEASE_SECONDS = 30.0


async def ended(world: World) -> Run:
    run = await world.start(callback_url=URL)
    assert await world.records.runs.settle(run.id, a_settlement())
    return await world.records.runs.get(OURS, run.id)


async def claimed(world: World, clock: HandClock) -> Run:
    """Create an ended run whose call was claimed at 60."""
    run = await ended(world)
    clock.time = at(60)
    await world.records.callbacks.claim(10, LEASE_SECONDS)
    return run


def outcome(**rest: object) -> CallbackOutcome:
    values: dict[str, object] = {
        "sent_at": at(7),
        "status_code": 200,
        "error": None,
        "again_at": None,
    }
    return CallbackOutcome(**(values | rest))  # type: ignore[arg-type]


async def test_a_call_is_due_once_its_run_is_settled(world: World, clock: HandClock) -> None:
    callbacks = world.records.callbacks
    clock.time = at(60)
    run = await world.start(callback_url=URL)
    assert await callbacks.claim(10, LEASE_SECONDS) == ()
    assert await world.records.runs.settle(run.id, a_settlement())
    settled = await world.records.runs.get(OURS, run.id)
    assert settled.callback_url == URL
    assert await callbacks.claim(10, LEASE_SECONDS) == [DueCallback(settled, 1)]


async def test_a_run_without_url_is_never_due(world: World, clock: HandClock) -> None:
    clock.time = at(60)
    await world.turn("hello")
    assert await world.records.callbacks.claim(10, LEASE_SECONDS) == ()


async def test_a_claimed_call_is_not_claimed_again_before_its_lease_expires(
    world: World, other_process: Records, clock: HandClock
) -> None:
    run = await ended(world)
    clock.time = at(60)
    assert [due.run.id for due in await world.records.callbacks.claim(10, LEASE_SECONDS)] == [
        run.id
    ]
    clock.time += timedelta(seconds=LEASE_SECONDS - 0.001)
    assert await other_process.callbacks.claim(10, LEASE_SECONDS) == ()
    clock.time += timedelta(seconds=0.001)
    (again,) = await other_process.callbacks.claim(10, LEASE_SECONDS)
    assert (again.run.id, again.tries) == (run.id, 2)


async def test_a_call_claimed_by_two_processes_at_once_goes_to_one(
    world: World, other_process: Records, clock: HandClock
) -> None:
    runs = [await ended(world) for _ in range(12)]
    clock.time = at(60)
    claims = await asyncio.gather(
        *(
            records.callbacks.claim(4, LEASE_SECONDS)
            for records in (world.records, other_process) * 4
        )
    )
    claimed = [due.run.id for claim in claims for due in claim]
    while more := await other_process.callbacks.claim(4, LEASE_SECONDS):
        claimed += [due.run.id for due in more]
    assert sorted(claimed) == sorted(run.id for run in runs)


async def test_the_outcome_of_a_call_is_stored_on_the_run_and_ends_it(
    world: World, clock: HandClock
) -> None:
    run = await claimed(world, clock)
    assert await world.records.callbacks.note(run.id, 1, outcome())
    found = await world.records.runs.get(OURS, run.id)
    assert (found.callback_sent_at, found.callback_status_code) == (at(7), 200)
    assert found.callback_error is None
    clock.time = at(1_000_000)
    assert await world.records.callbacks.claim(10, LEASE_SECONDS) == ()


async def test_a_failed_call_is_due_again_at_the_given_time(world: World, clock: HandClock) -> None:
    run = await claimed(world, clock)
    failed = outcome(status_code=500, error="answered 500", again_at=at(90))
    assert await world.records.callbacks.note(run.id, 1, failed)
    found = await world.records.runs.get(OURS, run.id)
    assert (found.callback_status_code, found.callback_error) == (500, "answered 500")
    clock.time = at(89)
    assert await world.records.callbacks.claim(10, LEASE_SECONDS) == ()
    clock.time = at(90)
    (again,) = await world.records.callbacks.claim(10, LEASE_SECONDS)
    assert again.tries == 2


async def test_an_expired_claim_does_not_overwrite_the_outcome_of_a_later_one(
    world: World, other_process: Records, clock: HandClock
) -> None:
    run = await claimed(world, clock)
    clock.time = at(100)
    await other_process.callbacks.claim(10, LEASE_SECONDS)
    assert await other_process.callbacks.note(run.id, 2, outcome())
    late = outcome(status_code=None, error="no answer", again_at=at(101))
    assert not await world.records.callbacks.note(run.id, 1, late)
    found = await world.records.runs.get(OURS, run.id)
    assert (found.callback_status_code, found.callback_error) == (200, None)


async def test_the_call_of_a_deleted_run_is_forgotten(world: World, clock: HandClock) -> None:
    run = await ended(world)
    await world.records.runs.delete(OURS, run.id)
    clock.time = at(60)
    assert await world.records.callbacks.claim(10, LEASE_SECONDS) == ()


async def test_tenants_alternate_and_a_host_gets_few_calls_at_once(
    world: World, other_process: Records, clock: HandClock
) -> None:
    """D4: the second tenant does not wait behind all due calls of the first."""
    for _ in range(8):
        await ended(world)
    theirs = await a_world(world.records, THEIRS)
    run = a_run(theirs.thread, THEIRS, callback_url="https://their.example/done")
    await world.records.runs.create(THEIRS, run, None, ())
    assert await world.records.runs.settle(run.id, a_settlement(completed_at=at(50)))
    clock.time = at(60)
    claimed = await other_process.callbacks.claim(3, LEASE_SECONDS)
    assert [due.run.tenant for due in claimed] == [OURS, THEIRS, OURS]
    assert claimed[1].receiver == Receiver(THEIRS, "their.example")
    closed = Room(10, closed_receivers=[claimed[0].receiver])
    assert await world.records.callbacks.claim(closed, LEASE_SECONDS) == ()
    full = Room(10, full_tenants=[OURS])
    assert await world.records.callbacks.claim(full, LEASE_SECONDS) == ()
    left = await world.records.callbacks.claim(10, LEASE_SECONDS)
    assert len(left) == CALLBACKS_PER_RECEIVER


async def test_concurrent_first_requests_create_one_secret_for_a_tenant(
    world: World, other_process: Records
) -> None:
    """D5: each tenant has a secret of its own."""
    both = (world.records, other_process)
    found = await asyncio.gather(*(one.callbacks.secrets(OURS) for one in both * 4))
    assert len({tuple(secrets) for secrets in found}) == 1
    [secret] = found[0]
    assert secret.startswith("whsec_")
    assert list(await world.records.callbacks.secrets(THEIRS)) != [secret]


async def test_a_replaced_secret_signs_for_a_day_beside_the_new_one(
    world: World, clock: HandClock
) -> None:
    """D5: rotation has an overlap."""
    callbacks = world.records.callbacks
    [first] = await callbacks.secrets(OURS)
    second = await callbacks.rotate_secret(OURS)
    assert list(await callbacks.secrets(OURS)) == [second, first]
    clock.time += timedelta(seconds=CALLBACK_SECRET_OVERLAP_SECONDS)
    assert list(await callbacks.secrets(OURS)) == [second]
    assert await callbacks.rotate_secret(THEIRS) not in {first, second}
