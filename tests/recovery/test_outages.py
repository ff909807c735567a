"""Stores that are unavailable for a while or for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import structlog.testing

from reattach.domain.errors import ReattachError, StoreUnavailableError
from reattach.domain.events import RunStatus
from reattach.domain.ids import Seq, Token
from reattach.domain.limits import APPEND_RETRY_SECONDS, SWEEP_INTERVAL_SECONDS
from reattach.domain.messages import Role
from reattach.log.base import Log, RunWriter
from reattach.records.base import Run
from reattach.runs import service as service_module
from reattach.runs.attempts.policy import CONTINUES, ContinuePolicy
from reattach.runs.upkeep.schedule import upkeep
from tests.support.clocks import LeapClock
from tests.support.engines import EndlessEngine, SteppedEngine
from tests.support.faulty_stores import Faults, FaultyLog, Gate, Life, Outage
from tests.support.in_process_readers import Reader
from tests.support.received import answer, end_of
from tests.support.stores import ENDS_RUNS, Stores, eventually

TEXT = "one two three"


async def run_ready_tasks(count: int = 100) -> None:
    """Let all ready tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.promise("P2")
async def test_no_reader_gets_an_event_before_it_is_in_the_log(stores: Stores) -> None:
    gate = Gate("log.append", "log.close")
    service = stores.service_upon(gate)
    run = await service.send(stores.send(await stores.conversation(), TEXT, include_pings=True))
    async with Reader(service, run) as reader:
        async with asyncio.timeout(10):
            await gate.waiting.wait()
        await run_ready_tasks()
        assert reader.headers["x-run-id"] == run.id
        assert reader.received.frames == []
        assert await stores.frames(run) == []
        gate.opened.set()
        received = await reader.to_end()
    assert received.frames == await stores.frames(run)
    assert received.text == TEXT


@pytest.mark.promise("P3")
async def test_no_reader_gets_the_end_before_the_log_is_closed_or_done_before_the_record_is_settled(
    stores: Stores,
) -> None:
    gate = Gate("log.close", "runs.settle")
    service = stores.service_upon(gate)
    run = await service.send(stores.send(await stores.conversation(), TEXT))
    async with Reader(service, run) as reader:
        async with asyncio.timeout(10):
            await gate.waiting.wait()
        await run_ready_tasks()
        assert "stop_reason" not in reader.received.kinds
        assert not reader.received.done
        gate.opened.set()
        await reader.to_end()
        assert (await stores.run(run)).status is RunStatus.COMPLETED


@pytest.mark.promise("P2", "P3")
@pytest.mark.parametrize("loses_answers", [False, True], ids=["refusing", "losing answers"])
@pytest.mark.parametrize(
    "step", ["log.open", "messages.context", "log.append", "log.close", "runs.settle"]
)
@pytest.mark.usefixtures("contexts_read_apart")
async def test_an_outage_within_the_retry_time_loses_and_doubles_no_event(
    stores: Stores, step: str, loses_answers: bool
) -> None:
    outage = Outage(step, loses_answers=loses_answers, lasts=5)
    conversation = await stores.conversation()
    service = stores.service_upon(outage)
    run = await service.send(stores.send(conversation, TEXT, include_pings=True))
    async with Reader(service, run) as reader:
        received = await reader.to_end()
    assert outage.attempts == 5
    assert received.end() == {"stop_reason": "end_turn", "error_type": None}
    assert received.frames == await stores.frames(run)
    assert received.text == TEXT
    assert (await stores.run(run)).status is RunStatus.COMPLETED
    assert await stores.kept(conversation) == [(Role.USER, TEXT), (Role.ASSISTANT, TEXT)]


@pytest.mark.promise("P2", "P3", "P7")
@pytest.mark.parametrize("step", ["log.append", "log.close"])
async def test_a_run_that_cannot_be_logged_for_too_long_is_ended_once_the_store_is_back(
    stores: Stores, step: str
) -> None:
    clock = LeapClock()
    outage = Outage()
    engine = SteppedEngine("one ", "two ", "three ")
    conversation = await stores.conversation()
    service = stores.service_upon(outage, engine=engine, clock=clock)
    run = await service.send(stores.send(conversation, "count"))
    async with Reader(service, run) as reader:
        engine.step()
        await reader.until_seq(1)
        outage.down = {step}
        began = clock.monotonic_seconds()
        engine.step(3)
        async with asyncio.timeout(10):
            await engine.closed.wait()
            await service.wait_until_settled(run)
        assert clock.monotonic_seconds() - began >= APPEND_RETRY_SECONDS
        assert not reader.received.done
        assert "stop_reason" not in reader.received.kinds
        assert (await stores.run(run)).status.is_active
        outage.down = set()
        await service.recover()
        received = await reader.to_end()
    assert received.end() == {"stop_reason": "error", "error_type": "internal_error"}
    assert received.frames == await stores.frames(run)
    settled = await stores.run(run)
    assert settled.status is RunStatus.FAILED
    text = "one " if step == "log.append" else "one two three "
    assert received.text == text
    assert await stores.kept(conversation) == [(Role.USER, "count"), (Role.ASSISTANT, text)]
    await service.recover()
    assert await stores.frames(run) == received.frames
    await stores.assert_free(conversation)


@pytest.mark.promise("P3")
async def test_a_reader_is_disconnected_without_done_while_the_run_cannot_be_settled(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SETTLE_WAIT_SECONDS", 0.05)
    outage = Outage("runs.settle")
    conversation = await stores.conversation()
    service = stores.service_upon(outage)
    run = await service.send(stores.send(conversation, TEXT))
    async with Reader(service, run) as reader:
        received = await reader.to_end()
        assert reader.aborted
    assert not received.done
    assert "stop_reason" not in received.kinds
    assert (await stores.run(run)).status.is_active
    outage.down = set()
    await service.recover()
    async with Reader(service, run, received.cursor) as reader:
        rest = await reader.to_end()
    assert rest.done
    assert received.frames + rest.frames == await stores.frames(run)
    assert (await stores.run(run)).status is RunStatus.COMPLETED
    assert await stores.kept(conversation) == [(Role.USER, TEXT), (Role.ASSISTANT, TEXT)]


@pytest.mark.promise("P6")
async def test_an_abandoned_run_with_a_requested_cancel_ends_as_cancelled(
    stores: Stores,
) -> None:
    outage = Outage()
    engine = SteppedEngine("one ", "two ")
    service = stores.service_upon(outage, engine=engine)
    run = await service.send(stores.send(await stores.conversation(), "count"))
    engine.step()
    async with Reader(service, run) as reader:
        await reader.until_seq(1)
        outage.down = {"log.append", "log.close", "log.open"}
        engine.step()
        assert await service.cancel([run]) == {run.id: "cancelling"}
        outage.down = set()
        await service.recover()
        received = await reader.to_end()
    assert received.end() == {"stop_reason": "cancelled", "error_type": None}
    assert (await stores.run(run)).status is RunStatus.CANCELLED


@pytest.mark.promise("P5")
async def test_a_run_whose_log_could_not_be_opened_is_not_reported_as_expired(
    stores: Stores,
) -> None:
    outage = Outage("log.open")
    service = stores.service_upon(outage)
    run = await service.send(stores.send(await stores.conversation(), TEXT))
    async with Reader(service, run) as reader:
        await reader.to_end()
    assert (reader.status, reader.error["code"]) == (503, "store_unavailable")
    outage.down = set()
    await service.recover()
    async with Reader(service, run) as reader:
        end = (await reader.to_end()).end()
    assert end == {"stop_reason": "error", "error_type": "internal_error"}


@pytest.mark.promise("P3")
@pytest.mark.usefixtures("contexts_read_apart")
async def test_a_run_whose_conversation_cannot_be_read_ends_at_once_with_an_error(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    service = stores.service_upon(Outage("messages.context"))
    run = await service.send(stores.send(conversation, TEXT))
    async with Reader(service, run) as reader:
        end = (await reader.to_end()).end()
    assert end == {"stop_reason": "error", "error_type": "internal_error"}
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert await stores.kept(conversation) == []


@pytest.mark.promise("P19")
@pytest.mark.parametrize("policy", [CONTINUES, ENDS_RUNS], ids=["goes on", "ends"])
async def test_a_run_whose_steps_cannot_be_noted_for_too_long_is_taken_up_when_the_store_is_back(
    stores: Stores, policy: ContinuePolicy
) -> None:
    outage = Outage("runs.note")
    service = stores.service_upon(outage, clock=LeapClock(), policy=policy)
    run = await service.send(stores.send(await stores.conversation(), "[chunks=3][steps=3]"))
    async with Reader(service, run) as reader:
        await reader.until_seq(3)
        async with asyncio.timeout(10):
            await service.wait_until_settled(run)
        assert (await stores.run(run)).status.is_active
        assert "stop_reason" not in reader.received.kinds
        outage.down = set()
        await service.recover()
        received = await reader.to_end()
    assert received.frames == await stores.frames(run)
    if policy is CONTINUES:
        assert received.end() == {"stop_reason": "end_turn", "error_type": None}
        assert received.text == "".join(f"t{number} " for number in range(9))
    else:
        assert received.end() == {"stop_reason": "error", "error_type": "internal_error"}
        assert received.text == "t0 t1 t2 "


async def test_a_send_never_hangs_because_of_a_fault_of_the_records(stores: Stores) -> None:
    class Broken(Faults):
        async def around(self, step: str, call: Any) -> Any:
            if step == "runs.create":
                raise RuntimeError("a fault")
            return await super().around(step, call)

    service = stores.service_upon(Broken())
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="a fault"):
            await service.send(stores.send(await stores.conversation(), TEXT))


@pytest.mark.promise("P7", "P9")
async def test_a_run_whose_creation_was_not_confirmed_does_not_block_its_conversation(
    stores: Stores,
) -> None:
    conversation = await stores.conversation()
    service = stores.service_upon(Outage("runs.create", loses_answers=True, lasts=1))
    with pytest.raises(StoreUnavailableError):
        await service.send(stores.send(conversation, TEXT, otid="mine"))
    await service.recover()
    again = await service.send(stores.send(conversation, TEXT, otid="mine"))
    assert again.status is RunStatus.FAILED
    await stores.assert_free(conversation)


class OneLogDown(FaultyLog):
    """A log that is unavailable for one run."""

    def __init__(self, log: Log, down: str) -> None:
        super().__init__(log, Faults())
        self.down = down

    async def open(
        self, run_id: str, token: Token, *, first_seq: int = 1, aliases: Sequence[str] = ()
    ) -> RunWriter:
        if run_id == self.down:
            raise StoreUnavailableError("The store is down.")
        await asyncio.sleep(0.01)
        return await super().open(run_id, token, first_seq=Seq(first_seq), aliases=aliases)


async def orphans_of(stores: Stores, count: int) -> list[Run]:
    """Create runs of a dead process, each in its own conversation."""
    life = Life(None)
    service = stores.service_upon(life)
    runs = [
        await service.send(stores.send(await stores.conversation(), "[hang=1]"))
        for _ in range(count)
    ]
    for run in runs:
        async with Reader(service, run) as reader:
            await reader.until_seq(1)
            reader.die()
    life.ended.set()
    return runs


@pytest.mark.promise("P7")
async def test_a_run_that_cannot_be_recovered_does_not_delay_others(stores: Stores) -> None:
    runs = await orphans_of(stores, 5)
    log = OneLogDown(stores.log, runs[0].id)
    service = stores.service(log=log)
    with pytest.raises(ReattachError):
        await service.recover()
    assert [run.id for run in await stores.active_runs()] == [runs[0].id]
    log.down = ""
    await service.recover()
    assert await stores.active_runs() == []
    for run in runs:
        assert end_of(await stores.frames(run))["error_type"] == "stream_incomplete"
        assert answer(await stores.frames(run)) == "t0 "


@pytest.mark.promise("P7", "P12")
async def test_a_recovery_that_fails_for_an_unknown_reason_is_repeated_less_and_less_often(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that no retry mends filled the server's log with tracebacks."""
    (run,) = await orphans_of(stores, 1)
    clock = LeapClock()
    service = stores.service(clock=clock)
    attempts = 0

    async def fail(*_: object) -> None:
        nonlocal attempts
        attempts += 1
        raise TypeError("damaged")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(service._recovery, "_take_over", fail)
        for _ in range(100):
            await service.recover()
            clock.leap(0.1)
        assert 2 <= attempts <= 5
        failures = [line for line in lines if line["event"] == "run not recovered"]
        assert [bool(line["exc_info"]) for line in failures] == [True, *[False] * (attempts - 1)]
    clock.leap(600)
    await service.recover()
    assert await stores.active_runs() == []
    assert end_of(await stores.frames(run))["error_type"] == "stream_incomplete"


@pytest.mark.promise("P7")
async def test_an_interrupted_recovery_is_finished_by_the_next_one_of_the_process(
    stores: Stores,
) -> None:
    (run,) = await orphans_of(stores, 1)
    gate = Gate("log.open")
    service = stores.service_upon(gate)
    recovering = asyncio.create_task(service.recover())
    async with asyncio.timeout(10):
        await gate.waiting.wait()
    recovering.cancel()
    await asyncio.wait({recovering}, timeout=10)
    gate.opened.set()
    await service.recover()
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert end_of(await stores.frames(run))["error_type"] == "stream_incomplete"


@pytest.mark.promise("P7")
async def test_readers_of_an_orphan_get_the_end_that_the_upkeep_writes(stores: Stores) -> None:
    (run,) = await orphans_of(stores, 1)
    service = stores.service()
    async with Reader(service, run) as reader:
        await reader.until_seq(1)
        await service.recover()
        assert (await reader.to_end()).end()["error_type"] == "stream_incomplete"


async def test_a_fault_of_the_log_does_not_leave_the_run_active_for_ever(stores: Stores) -> None:
    class Broken(Faults):
        async def around(self, step: str, call: Any) -> Any:
            if step == "log.append":
                raise RuntimeError("a fault")
            return await super().around(step, call)

    engine = EndlessEngine("x" * 10_000)
    service = stores.service_upon(Broken(), engine=engine)
    run = await service.send(stores.send(await stores.conversation(), TEXT))
    async with asyncio.timeout(10):
        await service.wait_until_settled(run)
        await engine.closed.wait()
    await stores.service().start()
    assert end_of(await stores.frames(run))["error_type"] == "stream_incomplete"


@pytest.mark.promise("P7")
async def test_the_upkeep_continues_after_any_exception(stores: Stores) -> None:
    (run,) = await orphans_of(stores, 1)

    class Broken(Outage):
        async def around(self, step: str, call: Any) -> Any:
            if step == "runs.list_expired" and self.attempts == 0:
                self.attempts += 1
                raise RuntimeError("a fault")
            return await super().around(step, call)

    service = stores.service_upon(Broken("runs.orphans", lasts=2))
    upkeep_task = asyncio.create_task(upkeep(service, LeapClock(), 3600))
    await eventually(lambda: ended(stores, run))
    upkeep_task.cancel()
    assert end_of(await stores.frames(run))["error_type"] == "stream_incomplete"


@pytest.mark.promise("P7")
async def test_an_abandoned_run_gets_its_end_soon_after_the_store_is_back(
    stores: Stores,
) -> None:
    runs = await orphans_of(stores, 1)
    log = OneLogDown(stores.log, runs[0].id)
    service = stores.service(log=log)
    tries = 0
    recover = service.recover

    async def counted() -> None:
        nonlocal tries
        tries += 1
        await recover()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "recover", counted)
        clock = LeapClock()
        upkeep_task = asyncio.create_task(upkeep(service, clock, 3600))
        await eventually(lambda: tried_twice(lambda: tries))
        assert clock.passed_seconds < SWEEP_INTERVAL_SECONDS
        log.down = ""
        await eventually(lambda: ended(stores, runs[0]))
        await eventually(lambda: not service.has_pending_recoveries)
        upkeep_task.cancel()

    assert end_of(await stores.frames(runs[0]))["error_type"] == "stream_incomplete"


async def tried_twice(tries: Callable[[], int]) -> bool:
    return tries() >= 2


async def ended(stores: Stores, run: Run) -> bool:
    return not (await stores.run(run)).status.is_active


async def test_a_store_that_fails_for_long_does_not_leave_tasks_behind(stores: Stores) -> None:
    before = asyncio.all_tasks()
    service = stores.service_upon(Outage("log.append", "log.close"))
    run = await service.send(stores.send(await stores.conversation(), TEXT))
    await service.wait_until_settled(run)
    await eventually(lambda: asyncio.all_tasks() <= before)
