"""An answer that the provider keeps is stopped there when its run ends before the answer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from reattach.domain.errors import ModelError
from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import TextPart
from reattach.engine.base import AnswerKept, Delta, Engine, Finished, Model, StepFinished, Turn, Way
from reattach.records.base import Run
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.service import RunService
from tests.support.faulty_stores import Gate, Life
from tests.support.stores import ENDS_RUNS, Stores

MODEL = "keeping/model"
UPSTREAM_ID = "answer-1"
GOES_ON = ContinuePolicy()
WAIT_SECONDS = 10.0


class KeepingEngine(Engine):
    """A model whose provider keeps its answer, which is whole only once ``may_end`` is set."""

    def __init__(self) -> None:
        self.speaks = asyncio.Event()
        self.may_end = asyncio.Event()
        self.breaks = False
        """Whether the stream breaks after its first text."""
        self.cancelled: list[tuple[str, str]] = []

    def models(self) -> Sequence[Model]:
        return [Model(MODEL, "model", "keeping", "openai", 8000, can_summarize=False)]

    def ways(self, turn: Turn) -> set[Way]:
        kept = turn.partial is not None and turn.partial.upstream_id is not None
        return {Way.UPSTREAM, Way.STEP} if kept else {Way.STEP}

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        if Way.UPSTREAM not in self.ways(turn):
            yield AnswerKept(UPSTREAM_ID)
            yield TextPart("one ")
        self.speaks.set()
        if self.breaks:
            error = ModelError("The stream broke.")
            error.may_pass = True
            raise error
        await self.may_end.wait()
        yield TextPart("two")
        yield StepFinished(Usage())
        yield Finished()

    async def cancel_upstream(self, model: str, upstream_id: str) -> None:
        self.cancelled.append((model, upstream_id))


async def begun(stores: Stores, service: RunService, engine: KeepingEngine) -> Run:
    """Return a run whose answer has begun."""
    await service.start()
    run = await service.send(stores.send(await stores.conversation(), "speak", model=MODEL))
    await engine.speaks.wait()
    return run


async def interrupted(stores: Stores) -> Run:
    """Return a run whose process died within the answer."""
    life = Life("after log.append", 1)
    engine = KeepingEngine()
    async with asyncio.timeout(WAIT_SECONDS):
        run = await begun(stores, stores.service_upon(life, engine=engine, policy=GOES_ON), engine)
        await life.ended.wait()
    assert engine.cancelled == []
    return run


async def taken_up(stores: Stores, run: Run, policy: ContinuePolicy) -> tuple[Run, KeepingEngine]:
    """Start the next process, and return the run when it has ended."""
    engine = KeepingEngine()
    engine.may_end.set()
    service = stores.service(engine=engine, policy=policy)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        return await service.wait_until_settled(run), engine


@pytest.mark.promise("P6", "P19")
async def test_a_cancelled_run_stops_its_answer_at_the_provider(stores: Stores) -> None:
    engine = KeepingEngine()
    service = stores.service(engine=engine, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        run = await begun(stores, service, engine)
        assert await service.cancel([run]) == {run.id: "cancelled"}
    assert engine.cancelled == [(MODEL, UPSTREAM_ID)]


@pytest.mark.promise("P6", "P19")
async def test_a_run_that_is_cancelled_between_attempts_stops_its_answer(stores: Stores) -> None:
    run = await interrupted(stores)
    await stores.records.runs.request_cancel(run.tenant, [run.id])
    ended, engine = await taken_up(stores, run, GOES_ON)
    assert ended.stop_reason is StopReason.CANCELLED
    assert engine.cancelled == [(MODEL, UPSTREAM_ID)]


@pytest.mark.promise("P6", "P19")
async def test_a_run_that_is_cancelled_before_it_goes_on_stops_its_answer(stores: Stores) -> None:
    run = await interrupted(stores)
    gate, engine = Gate("messages.context"), KeepingEngine()
    service = stores.service_upon(gate, engine=engine, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        await service.start()
        await gate.waiting.wait()
        assert await service.cancel([run]) == {run.id: "cancelled"}
    assert engine.cancelled == [(MODEL, UPSTREAM_ID)]


@pytest.mark.promise("P7", "P19")
@pytest.mark.parametrize("policy", [ENDS_RUNS, ContinuePolicy(max_interruptions=0)])
async def test_a_run_that_may_not_go_on_stops_its_answer(
    stores: Stores, policy: ContinuePolicy
) -> None:
    ended, engine = await taken_up(stores, await interrupted(stores), policy)
    assert ended.stop_reason is StopReason.ERROR
    assert engine.cancelled == [(MODEL, UPSTREAM_ID)]


@pytest.mark.promise("P7", "P19")
async def test_a_run_whose_provider_failed_too_often_stops_its_answer(stores: Stores) -> None:
    engine = KeepingEngine()
    engine.breaks = True
    service = stores.service(engine=engine, policy=ContinuePolicy(max_interruptions=0))
    async with asyncio.timeout(WAIT_SECONDS):
        ended = await service.wait_until_settled(await begun(stores, service, engine))
    assert ended.stop_reason is StopReason.MODEL_API_ERROR
    assert engine.cancelled == [(MODEL, UPSTREAM_ID)]


@pytest.mark.promise("P15", "P19")
async def test_an_answer_that_is_followed_to_its_end_is_not_stopped(stores: Stores) -> None:
    engine = KeepingEngine()
    service = stores.service(engine=engine, policy=GOES_ON)
    async with asyncio.timeout(WAIT_SECONDS):
        run = await begun(stores, service, engine)
        await service.drain(0)
    assert engine.cancelled == []
    ended, next_engine = await taken_up(stores, run, GOES_ON)
    assert ended.stop_reason is StopReason.END_TURN
    assert [one.way for one in ended.attempts] == ["upstream"]
    assert next_engine.cancelled == []
