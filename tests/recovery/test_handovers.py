"""Runs that their process hands over while it is being stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from reattach.domain.events import StopReason
from reattach.domain.messages import TextPart
from reattach.engine.base import AnswerKept, Delta, Turn
from reattach.engine.function import FunctionEngine
from reattach.records.base import Page, Run, Target
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.service import RunService
from reattach.tools.base import Toolbox
from tests.recovery.test_continuing import continued, events, interrupted, returns_in, said
from tests.recovery.test_outages import orphans_of
from tests.recovery.test_tools import Launch, sent
from tests.support.faulty_stores import Faults, Life
from tests.support.in_process_readers import Reader
from tests.support.stores import ENDS_RUNS, Stores, eventually

WAIT_SECONDS = 10.0
GOES_ON = ContinuePolicy()
T = TypeVar("T")


class LateAnswer(Faults):
    """A store that carries out the first call of ``step`` at once, and answers it when ``let``."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self._step = step
        self.waiting = asyncio.Event()
        self.let = asyncio.Event()

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        result = await super().around(step, call)
        if step == self._step and self.calls[step] == 1:
            self.waiting.set()
            await self.let.wait()
        return result


async def held_up(
    stores: Stores, step: str, policy: ContinuePolicy
) -> tuple[RunService, LateAnswer, asyncio.Task[None]]:
    """Start a process that recovers runs, until it waits for the late answer of ``step``."""
    late = LateAnswer(step)
    service = stores.service_upon(late, policy=policy)
    recovering = asyncio.create_task(service.start())
    async with asyncio.timeout(WAIT_SECONDS):
        await late.waiting.wait()
    return service, late, recovering


async def handed_over(service: RunService, run: Run, late: LateAnswer) -> None:
    """Stop the process while it waits for the late answer, which comes when the engine is gone."""
    await late.waiting.wait()
    draining = asyncio.create_task(service.drain(0))

    async def engine_is_gone() -> bool:
        return all(task.get_name() != f"engine {run.id}" for task in asyncio.all_tasks())

    await eventually(engine_is_gone)
    late.let.set()
    await draining


@pytest.mark.promise("P17", "P19")
@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_tool_that_was_about_to_begin_at_a_handover_runs_in_the_next_process(
    stores: Stores, idempotent: bool
) -> None:
    tools = [Launch(hangs=False), Launch(hangs=False)]
    for tool in tools:
        tool.idempotent = idempotent
    late = LateAnswer("runs.note_begun")
    service = stores.service_upon(late, policy=GOES_ON, toolbox=Toolbox([tools[0]]))
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(sent(stores, await stores.conversation()))
        await handed_over(service, run, late)
    ended = await continued(stores, run, tools[1])
    assert ended.stop_reason is StopReason.END_TURN
    assert [one.interruption for one in ended.attempts] == ["handover"]
    assert [tool.calls for tool in tools] == [0, 1]
    assert returns_in(await events(stores, run)) == [("success", "launched")]


@pytest.mark.promise("P19")
async def test_the_id_of_a_kept_answer_that_was_being_noted_survives_a_handover(
    stores: Stores,
) -> None:
    async def answer(turn: Turn) -> AsyncIterator[Delta]:
        yield AnswerKept("answer-1")
        yield TextPart("never")

    late = LateAnswer("runs.note")
    engine = FunctionEngine({"kept": answer})
    service = stores.service_upon(late, policy=GOES_ON, engine=engine)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        conversation = await stores.conversation()
        run = await service.send(stores.send(conversation, "go", model="function/kept"))
        await handed_over(service, run, late)
    notes = (await stores.run(run)).notes
    assert (notes.upstream_id, notes.handed_over) == ("answer-1", True)


@pytest.mark.promise("P15")
async def test_a_reader_that_comes_after_the_handover_is_disconnected_too(stores: Stores) -> None:
    service = stores.service(policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        run = await service.send(stores.send(await stores.conversation(), "[hang=1]"))
        async with Reader(service, run) as early:
            await early.until_seq(1)
        await service.drain(0)
        async with Reader(service, run) as late:
            received = await late.to_end()
    assert late.aborted
    assert received.cursor == 1


@pytest.mark.promise("P7", "P15", "P19")
@pytest.mark.parametrize("step", ["log.head", "runs.take_over", "log.open"])
async def test_a_process_that_is_stopped_while_it_recovers_a_run_leaves_it_to_the_next(
    stores: Stores, step: str
) -> None:
    run = await interrupted(stores, "[chunks=6]", "after log.append", 3)
    assert run is not None
    service, late, recovering = await held_up(stores, step, GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.drain(0)
        late.let.set()
        await recovering
        await service.drain(0)
    ended = await continued(stores, run)
    assert ended.stop_reason is StopReason.END_TURN
    assert said(await events(stores, run)) == [("TextPart", "t0 t1 t2 t3 t4 t5 ")]


@pytest.mark.promise("P17", "P19")
async def test_a_call_that_was_interrupted_twice_gets_one_return_and_ends_its_step(
    stores: Stores,
) -> None:
    run = await interrupted(stores, "[tool=launch][rounds=2]", "after log.append", 1)
    assert run is not None
    life = Life("before runs.note")  # It has logged the error return of the call.
    service = stores.service_upon(life, policy=GOES_ON, toolbox=Toolbox([Launch(hangs=False)]))
    async with asyncio.timeout(WAIT_SECONDS):
        starting = asyncio.create_task(service.start())
        await life.ended.wait()
    starting.cancel()
    assert len(returns_in(await events(stores, run))) == 1
    tool = Launch(hangs=False)
    ended = await continued(stores, run, tool)
    assert ended.stop_reason is StopReason.END_TURN
    returned = returns_in(await events(stores, run))
    assert [status for status, _ in returned] == ["error", "success"]
    assert tool.calls == 1
    steps = await stores.records.runs.steps(run.tenant, run.id, Page(limit=9, ascending=True))
    assert len(steps) == 3


@pytest.mark.promise("P6", "P19")
@pytest.mark.parametrize("step", ["runs.take_over", "log.head", "log.open"])
async def test_a_run_that_is_cancelled_while_it_is_taken_up_does_not_go_on(
    stores: Stores, step: str
) -> None:
    run = await interrupted(stores, "[chunks=6][hang=3]", "after log.append", 2)
    assert run is not None
    service, late, recovering = await held_up(stores, step, GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        cancelling = asyncio.create_task(service.cancel([run]))
        await eventually(lambda: is_cancel_requested(stores, run))
        late.let.set()
        assert await cancelling == {run.id: "cancelled"}
        await recovering
    assert (await stores.run(run)).stop_reason is StopReason.CANCELLED


@pytest.mark.promise("P6", "P7")
async def test_of_runs_that_are_taken_over_together_the_cancelled_one_ends_as_cancelled(
    stores: Stores,
) -> None:
    runs = await orphans_of(stores, 3)
    service, late, recovering = await held_up(stores, "log.head", ENDS_RUNS)
    async with asyncio.timeout(WAIT_SECONDS):
        assert late.calls["runs.take_over"] == 1
        cancelling = asyncio.create_task(service.cancel([runs[0]]))
        await eventually(lambda: is_cancel_requested(stores, runs[0]))
        late.let.set()
        await asyncio.gather(cancelling, recovering)
    reasons = [(await stores.run(run)).stop_reason for run in runs]
    assert reasons == [StopReason.CANCELLED, StopReason.ERROR, StopReason.ERROR]
    assert late.calls["runs.take_over"] == 1


async def is_cancel_requested(stores: Stores, run: Run) -> bool:
    return (await stores.run(run)).cancel_requested_at is not None


@pytest.mark.promise("P7", "P19")
async def test_a_reader_that_looks_for_the_log_while_its_run_is_taken_up_gets_it(
    stores: Stores,
) -> None:
    """It saw no log before the recovery and looked after it whether there will be one."""
    life = Life("before log.open")
    sender = stores.service_upon(life, policy=GOES_ON)
    late = LateAnswer("runs.get")
    service = stores.service_upon(late, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await sender.start()
        run = await sender.send(stores.send(await stores.conversation(), "one two"))
        await life.ended.wait()
        await service.start(recovers=False)
        reading = asyncio.create_task(service.follow(Target.of(run), 0))
        await late.waiting.wait()
        await service.recover()
        late.let.set()
        following = await reading
        await following.aclose()
        ended = await service.wait_until_settled(run)
    assert ended.stop_reason is StopReason.END_TURN
