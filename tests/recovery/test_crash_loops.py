"""A run that kills every process that takes it up ends, and takes no other run along."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from reattach.domain.events import StopReason
from reattach.domain.ids import Seq
from reattach.records.base import Attempt, Run
from reattach.runs.attempts.policy import Interruption
from reattach.runs.ownership import suspects
from tests.recovery.test_continuing import GOES_ON, WAIT_SECONDS, continued, interrupted
from tests.support.faulty_stores import Gate, Life
from tests.support.stores import Stores


@pytest.mark.promise("P7", "P19")
async def test_a_run_that_kills_its_process_before_any_event_ends_after_the_bound(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[chunks=3]", "before log.append", 1)
    assert run is not None
    for _ in range(GOES_ON.max_silent - 1):
        assert await died_again(stores, "before log.append")
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.END_TURN
    run = await interrupted(stores, "[chunks=3]", "before log.append", 1)
    assert run is not None
    for _ in range(GOES_ON.max_silent):
        assert await died_again(stores, "before log.append")
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.ERROR
    assert ended.error is not None
    assert ended.error.error_type == "stream_incomplete"


async def died_again(stores: Stores, moment: str, nth: int = 1) -> bool:
    """Let the next process take the runs up and die."""
    life = Life(moment, nth)
    service = stores.service_upon(life, policy=GOES_ON)
    starting = asyncio.create_task(service.start())
    async with asyncio.timeout(WAIT_SECONDS):
        await life.ended.wait()
    starting.cancel()
    return True


@pytest.mark.promise("P7", "P19")
async def test_a_run_that_kills_its_process_after_each_event_ends_after_the_other_bound(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[chunks=50]", "after log.append", 1)
    assert run is not None
    for _ in range(GOES_ON.max_interruptions):
        assert await died_again(stores, "after log.append")
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.ERROR
    assert len(ended.attempts) == GOES_ON.max_interruptions


@pytest.mark.promise("P7", "P19")
async def test_a_run_that_kills_its_processes_dies_alone_and_the_others_go_on(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of these tests passes without waiting, so a busy machine would be out of time.
    monkeypatch.setattr(suspects, "SUSPECT_SECONDS", 1e9)

    async def attempts() -> list[int]:
        return [len((await stores.run(run)).attempts) for run in runs]

    conversations = [await stores.conversation() for _ in range(4)]
    dying = [Gate("log.append"), Gate("log.append")]  # Never opened: the processes die there.
    services = [stores.service_upon(gate, policy=GOES_ON) for gate in dying]
    async with asyncio.timeout(WAIT_SECONDS):
        await services[0].start()
        runs = [await services[0].send(stores.send(one, "[chunks=3]")) for one in conversations]
        await dying[0].waiting.wait()
        await services[1].start()
        while await attempts() != [1, 1, 1, 1]:
            await asyncio.sleep(0)
    # The third process takes up only the oldest before it dies, and the fourth ends that one.
    assert await died_again(stores, "before log.append")
    assert await attempts() == [2, 1, 1, 1]
    service = stores.service(policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        ended = [await service.wait_until_settled(run) for run in runs]
    assert [run.stop_reason for run in ended] == [StopReason.ERROR] + [StopReason.END_TURN] * 3


@pytest.mark.promise("P19")
async def test_silent_crashes_do_not_count_as_broken_streams_of_the_provider(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[chunks=3]", "before log.append", 1)
    assert run is not None

    def silent(*why: Interruption) -> Run:
        attempts = [Attempt(run.created_at, Seq(0), Seq(1), 0, "step", one) for one in why]
        return structs.replace(run, attempts=tuple(attempts))

    def is_allowed(run: Run, by: Interruption) -> bool:
        now = run.created_at
        return GOES_ON.allows(run, by, last_seq=0, finished_steps=0, now=now)

    crash, provider = Interruption.CRASH, Interruption.PROVIDER
    assert is_allowed(silent(crash), crash)
    assert not is_allowed(silent(crash, crash), crash)
    assert is_allowed(silent(crash, crash, provider, provider), provider)
    assert not is_allowed(silent(crash, provider, provider, provider), provider)
    assert not is_allowed(silent(crash, provider, crash, provider, crash), provider)
