"""Readers that disconnect, and runs that are cancelled."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.errors import NoActiveRunsToCancelError
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import DEFAULT_TENANT
from reattach.domain.messages import Role
from reattach.records.base import Conversation, Run, Thread
from reattach.runs import driver as worker_module
from reattach.runs.service import RunService
from reattach.runs.upkeep.schedule import upkeep
from tests.support.engines import CancellingEngine, SteppedEngine, StubbornEngine
from tests.support.faulty_stores import Gate, faulty_records
from tests.support.in_process_readers import Reader
from tests.support.stores import Stores, eventually

GENEROUS_SECONDS = 5.0
CANCELLED = {"stop_reason": "cancelled", "error_type": None}


async def begun(stores: Stores, service: RunService, text: str) -> tuple[Conversation, Run]:
    """Start a run and wait for its first event."""
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, text))
    async with Reader(service, run) as reader:
        await reader.until_seq(1)
    return conversation, run


@pytest.mark.promise("P6")
async def test_a_run_without_readers_continues_to_its_end(stores: Stores) -> None:
    engine = SteppedEngine("one ", "two ")
    service = stores.service(engine=engine)
    run = await service.send(stores.send(await stores.conversation(), "count"))
    readers = [Reader(service, run) for _ in range(3)]
    for reader in readers:
        await reader.__aenter__()
    engine.step()
    for reader in readers:
        await reader.until_seq(1)
        await reader.__aexit__(None, None, None)
        assert not reader.received.done
    assert (await stores.run(run)).status is RunStatus.RUNNING
    engine.step(2)
    assert (await service.wait_until_settled(run)).status is RunStatus.COMPLETED
    async with Reader(service, run, 1) as late:
        assert (await late.to_end()).text == "two "


@pytest.mark.promise("P6")
async def test_a_reader_that_leaves_during_silence_is_released(stores: Stores) -> None:
    service = stores.service()
    _, run = await begun(stores, service, "[hang=1]")
    before = asyncio.all_tasks()
    async with Reader(service, run) as reader:
        await reader.until_seq(1)
        reader.leave()
        await reader.to_end()
        assert not reader.aborted
    await eventually(lambda: asyncio.all_tasks() <= before)


@pytest.mark.promise("P6")
async def test_a_cancel_during_an_answer_keeps_the_streamed_text_and_ends_all_streams(
    stores: Stores,
) -> None:
    service = stores.service()
    conversation, run = await begun(stores, service, "[think=1][chunks=5][hang=3]")
    async with Reader(service, run) as first, Reader(service, run, 2) as second:
        await first.until_seq(3)
        async with asyncio.timeout(GENEROUS_SECONDS):
            assert await service.cancel([run]) == {run.id: "cancelled"}
        received = await first.to_end()
        assert received.end() == CANCELLED
        assert (await second.to_end()).end() == CANCELLED
    assert received.kinds == [
        "reasoning_message",
        "assistant_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    assert second.received.frames == received.frames[2:]
    settled = await stores.run(run)
    assert settled.status is RunStatus.CANCELLED
    assert settled.stop_reason == "cancelled"
    assert await stores.kept(conversation) == [
        (Role.USER, "[think=1][chunks=5][hang=3]"),
        (Role.ASSISTANT, "t0 t1 "),
    ]
    await stores.assert_free(conversation)


@pytest.mark.promise("P6")
async def test_a_cancel_before_any_output_does_not_change_the_conversation(stores: Stores) -> None:
    service = stores.service()
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "[hang=0]"))
    async with asyncio.timeout(GENEROUS_SECONDS):
        assert await service.cancel([run]) == {run.id: "cancelled"}
    async with Reader(service, run) as reader:
        assert (await reader.to_end()).end() == CANCELLED
    assert await stores.kept(conversation) == []
    assert [message.text for message in (await stores.run(run)).input] == ["[hang=0]"]
    await stores.assert_free(conversation)


@pytest.mark.promise("P6")
async def test_repeated_and_concurrent_cancels_are_idempotent(
    stores: Stores,
) -> None:
    service = stores.service()
    _, run = await begun(stores, service, "[hang=1]")
    async with asyncio.timeout(GENEROUS_SECONDS):
        answers = await asyncio.gather(*(service.cancel([run]) for _ in range(5)))
        answers.append(await service.cancel([await stores.run(run)]))
    assert answers == [{run.id: "cancelled"}] * 6
    async with Reader(service, run) as reader:
        assert (await reader.to_end()).end() == CANCELLED


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("text", "state"), [("all of it", "completed"), ("[fail=1]", "failed"), ("[crash=1]", "failed")]
)
async def test_the_cancel_of_an_ended_run_returns_its_real_status(
    stores: Stores, text: str, state: str
) -> None:
    service = stores.service()
    run = await service.send(stores.send(await stores.conversation(), text))
    ended = await service.wait_until_settled(run)
    frames = await stores.frames(run)
    for known in (run, ended):
        assert await service.cancel([known]) == {run.id: state}
    assert await stores.frames(run) == frames
    assert await stores.run(run) == ended


@pytest.mark.promise("P6", "P3")
async def test_an_engine_that_ignores_its_cancellation_is_abandoned(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "ENGINE_STOP_SECONDS", 0.05)
    engine = StubbornEngine()
    service = stores.service(engine=engine)
    conversation, run = await begun(stores, service, "speak")
    async with Reader(service, run) as reader, asyncio.timeout(GENEROUS_SECONDS):
        assert await service.cancel([run]) == {run.id: "cancelled"}
        received = await reader.to_end()
        assert engine.refusals > 0
        engine.give_in()
        await eventually(
            lambda: not any(t.get_name().startswith("engine") for t in asyncio.all_tasks())
        )
    assert received.end() == CANCELLED
    assert await stores.frames(run) == received.frames
    assert await stores.kept(conversation) == [(Role.USER, "speak"), (Role.ASSISTANT, "said ")]
    await stores.assert_free(conversation)


@pytest.mark.promise("P6")
async def test_a_slow_cancel_answers_that_the_run_is_cancelling(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.runs.service.CANCEL_WAIT_SECONDS", 0.05)
    gate = Gate("runs.settle")
    service = stores.service(records=faulty_records(stores.records, gate))
    _, run = await begun(stores, service, "[hang=1]")
    assert await service.cancel([run]) == {run.id: "cancelling"}
    gate.opened.set()
    assert (await service.wait_until_settled(run)).status is RunStatus.CANCELLED
    assert await service.cancel([run]) == {run.id: "cancelled"}


@pytest.mark.promise("P3")
async def test_an_engine_that_cancels_itself_has_failed(stores: Stores) -> None:
    service = stores.service(engine=CancellingEngine())
    _, run = await begun(stores, service, "speak")
    async with Reader(service, run) as reader:
        end = (await reader.to_end()).end()
    assert end == {"stop_reason": "error", "error_type": "internal_error"}
    assert (await stores.run(run)).status is RunStatus.FAILED


@pytest.mark.promise("P6")
async def test_a_cancel_by_thread_cancels_only_its_active_run(
    stores: Stores,
) -> None:
    service = stores.service()
    conversation, run = await begun(stores, service, "[hang=1]")
    _, other = await begun(stores, service, "[hang=1]")
    thread = Thread(stores.agent.id, conversation.id)
    assert await service.cancel_thread(DEFAULT_TENANT, thread) == {run.id: "cancelled"}
    assert (await stores.run(other)).status is RunStatus.RUNNING
    with pytest.raises(NoActiveRunsToCancelError):
        await service.cancel_thread(DEFAULT_TENANT, thread)
    with pytest.raises(NoActiveRunsToCancelError):
        await service.cancel_thread(DEFAULT_TENANT, Thread(stores.agent.id, None))
    assert await service.cancel([run, other]) == {run.id: "cancelled", other.id: "cancelled"}


@pytest.mark.promise("P6")
@pytest.mark.usefixtures("contexts_read_apart")
async def test_a_run_that_is_cancelled_during_its_creation_ends_as_cancelled(
    stores: Stores,
) -> None:
    gate = Gate("messages.context")
    service = stores.service(records=faulty_records(stores.records, gate))
    run = await service.send(stores.send(await stores.conversation(), "never said"))
    async with asyncio.timeout(GENEROUS_SECONDS):
        await gate.waiting.wait()
        assert await service.cancel([run]) == {run.id: "cancelled"}
    gate.opened.set()
    async with Reader(service, run) as reader:
        received = await reader.to_end()
    assert received.end() == CANCELLED
    assert received.text == ""


@pytest.mark.promise("P6")
async def test_a_sender_that_disconnects_before_its_run_exists_does_not_stop_it(
    stores: Stores,
) -> None:
    gate = Gate("runs.create")
    service = stores.service(records=faulty_records(stores.records, gate))
    conversation = await stores.conversation()
    sending = asyncio.create_task(service.send(stores.send(conversation, "one two", otid="mine")))
    async with asyncio.timeout(GENEROUS_SECONDS):
        await gate.waiting.wait()
        sending.cancel()
        await asyncio.wait({sending})
        gate.opened.set()
        again = await service.send(stores.send(conversation, "one two", otid="mine"))
        assert (await service.wait_until_settled(again)).status is RunStatus.COMPLETED
    assert await stores.kept(conversation) == [(Role.USER, "one two"), (Role.ASSISTANT, "one two")]


async def test_a_server_alone_ends_a_run_that_another_program_cancels_in_its_records(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.runs.ownership.lease.LIFE_NOTED_SECONDS", 0.0)
    monkeypatch.setattr("reattach.runs.upkeep.schedule.RECOVERY_INTERVAL_SECONDS", 0.01)
    service = stores.service(engine=SteppedEngine("one ", "two "))
    await service.start()
    run = await service.send(stores.send(await stores.conversation(), "count"))
    tending = asyncio.create_task(upkeep(service, SystemClock(), 3600))
    try:
        await stores.records.runs.request_cancel(run.tenant, [run.id])
        async with asyncio.timeout(GENEROUS_SECONDS):
            ended = await service.wait_until_settled(run)
    finally:
        tending.cancel()
        await asyncio.wait({tending})
    assert ended.stop_reason is StopReason.CANCELLED
