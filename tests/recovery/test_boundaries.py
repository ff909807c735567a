"""Crashes between any two steps of a run, and crashes during its recovery."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from reattach.domain.events import RunStatus
from reattach.domain.messages import Message, Role
from reattach.records.base import Conversation, Run
from tests.support.faulty_stores import Life, faulty_records
from tests.support.in_process_readers import Reader
from tests.support.received import Received, answer, end_of
from tests.support.stores import Stores

WAIT_SECONDS = 10.0
TEXT = "one two three four five"

DEATHS_OF_A_RUN = [
    "after runs.create",
    "before log.open",
    "after log.open",
    "after runs.mark_running",
    "before messages.context",
    "before log.append",
    "after log.append",
    "before log.close",
    "after log.close",
    "before runs.settle",
    "after runs.settle",
]
DEATHS_OF_A_RECOVERY = [
    "after runs.orphans",
    "before runs.take_over",
    "after runs.take_over",
    "after log.open",
    "before log.close",
    "after log.close",
    "before runs.settle",
    "after runs.settle",
]


async def die_working(
    stores: Stores,
    conversation: Conversation,
    end: str,
    nth: int = 1,
    *,
    otid: str = "o",
    text: str = TEXT,
    messages: tuple[Message, ...] = (),
) -> tuple[Run, Received]:
    """Let a process die at ``end`` of a run, and return the run and what a reader got."""
    life = Life(end, nth)
    service = stores.service_upon(life)
    send = stores.send(conversation, text, otid=otid, include_pings=True)
    if messages:
        send = replace(send, messages=messages)
    sending = asyncio.create_task(service.send(send))
    ended = asyncio.create_task(life.ended.wait())
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.wait({sending, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            await life.ended.wait()
            active = await stores.active_runs()
            return active[0], Received()
        run = sending.result()
        reader = Reader(service, run)
        async with reader:
            await life.ended.wait()
            reader.die()
            seen = reader.received
    return run, seen


async def die_recovering(stores: Stores, end: str) -> bool:
    """Let a process die at ``end`` of a recovery, and return whether it reached that."""
    life = Life(end)
    service = stores.service_upon(life)
    starting = asyncio.create_task(service.start())
    ended = asyncio.create_task(life.ended.wait())
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if starting.done():
        starting.result()
    return life.ended.is_set()


async def assert_ended_once(
    stores: Stores, conversation: Conversation, run: Run, seen: Received, logged: list[bytes]
) -> None:
    """Assert that the run has everything that was logged and read before the crash, and one end."""
    frames = await stores.frames(run)
    assert frames[: len(logged)] == logged
    assert seen.by_seq.items() <= dict(enumerate(frames, 1)).items()
    whole = Received()
    whole.feed(b"".join(frames))
    end = end_of(frames)
    settled = await stores.run(run)
    assert settled.stop_reason == end["stop_reason"]
    text = answer(frames)
    if end["stop_reason"] == "end_turn":
        assert text == TEXT
        assert settled.status is RunStatus.COMPLETED
    else:
        assert end == {"stop_reason": "error", "error_type": "stream_incomplete"}
        assert settled.status is RunStatus.FAILED
        assert settled.error is not None
        assert settled.error.error_type == "stream_incomplete"
    expected = [(Role.USER, TEXT), (Role.ASSISTANT, text)] if text else []
    assert await stores.kept(conversation) == expected
    assert await stores.active_runs() == []
    async with Reader(stores.service(), run, seen.cursor) as reader:
        resumed = await reader.to_end()
    assert seen.frames + resumed.frames == frames
    await stores.assert_free(conversation)


@pytest.mark.promise("P2", "P3", "P7")
@pytest.mark.parametrize("end", DEATHS_OF_A_RUN)
async def test_a_run_whose_process_dies_has_one_end_after_the_next_start(
    stores: Stores, end: str, request: pytest.FixtureRequest
) -> None:
    if end == "before messages.context":
        request.getfixturevalue("contexts_read_apart")
    conversation = await stores.conversation()
    run, seen = await die_working(stores, conversation, end)
    logged = await stores.frames(run)
    await stores.service().start()
    await assert_ended_once(stores, conversation, run, seen, logged)


@pytest.mark.promise("P2", "P3", "P7")
@pytest.mark.parametrize("nth", [2, 3, 4])
async def test_events_that_readers_got_before_a_crash_are_in_the_log(
    stores: Stores, nth: int
) -> None:
    conversation = await stores.conversation()
    run, seen = await die_working(stores, conversation, "before log.append", nth)
    logged = await stores.frames(run)
    assert seen.frames == logged
    assert logged
    await stores.service().start()
    await assert_ended_once(stores, conversation, run, seen, logged)


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("second", DEATHS_OF_A_RECOVERY)
@pytest.mark.parametrize(
    "first", ["after runs.create", "after log.append", "after log.close", "before runs.settle"]
)
async def test_a_recovery_that_crashes_is_finished_by_the_next_one(
    stores: Stores, first: str, second: str
) -> None:
    conversation = await stores.conversation()
    run, seen = await die_working(stores, conversation, first)
    logged = await stores.frames(run)
    came_so_far = await die_recovering(stores, second)
    log_was_closed = first in {"after log.close", "before runs.settle"}
    assert came_so_far == (not (log_was_closed and "log.close" in second))
    await stores.service().start()
    await assert_ended_once(stores, conversation, run, seen, logged)


@pytest.mark.promise("P3", "P7")
async def test_a_recovery_that_crashes_repeatedly_still_ends_the_run_once(stores: Stores) -> None:
    conversation = await stores.conversation()
    run, seen = await die_working(stores, conversation, "after log.append")
    logged = await stores.frames(run)
    for end in DEATHS_OF_A_RECOVERY[:-1]:
        await die_recovering(stores, end)
    await stores.service().start()
    await assert_ended_once(stores, conversation, run, seen, logged)


@pytest.mark.promise("P9", "P7")
async def test_a_send_repeated_after_a_crash_gets_the_run_of_the_first_send(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    run, _ = await die_working(stores, conversation, "after runs.create", otid="mine")
    service = stores.service()
    await service.start()
    again = await service.send(stores.send(conversation, TEXT, otid="mine", include_pings=True))
    assert again.id == run.id
    assert again.status is RunStatus.FAILED


@pytest.mark.promise("P9")
async def test_a_send_whose_process_died_before_creating_the_run_creates_it_when_repeated(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    life = Life("before runs.create")
    dying = stores.service(records=faulty_records(stores.records, life))
    lost = asyncio.create_task(dying.send(stores.send(conversation, TEXT, otid="mine")))
    async with asyncio.timeout(WAIT_SECONDS):
        await life.ended.wait()
    service = stores.service()
    await service.start()
    run = await service.wait_until_settled(
        await service.send(stores.send(conversation, TEXT, otid="mine"))
    )
    assert run.status is RunStatus.COMPLETED
    assert await stores.kept(conversation) == [(Role.USER, TEXT), (Role.ASSISTANT, TEXT)]
    assert not lost.done()


@pytest.mark.promise("P6", "P7")
async def test_a_run_with_a_cancel_requested_before_the_crash_ends_as_cancelled(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    run, _ = await die_working(stores, conversation, "after log.append")
    await stores.records.runs.request_cancel(run.tenant, [run.id])
    await stores.service().start()
    assert end_of(await stores.frames(run)) == {"stop_reason": "cancelled", "error_type": None}
    assert (await stores.run(run)).status is RunStatus.CANCELLED
    await stores.assert_free(conversation)


@pytest.mark.promise("P6")
async def test_a_run_that_ended_before_the_crash_keeps_its_status_despite_a_cancel(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    run, _ = await die_working(stores, conversation, "after log.close")
    await stores.records.runs.request_cancel(run.tenant, [run.id])
    await stores.service().start()
    assert end_of(await stores.frames(run))["stop_reason"] == "end_turn"
    assert (await stores.run(run)).status is RunStatus.COMPLETED
