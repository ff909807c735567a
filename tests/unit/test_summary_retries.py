"""A summary is asked for again if the failure of its model may pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from reattach.agent.compaction.summary import Compactor, Plan, Summarizer
from reattach.domain.errors import EngineError, ModelError
from reattach.domain.messages import Role, TextPart
from reattach.engine.base import Delta, Engine, Model, ModelSettings, Turn
from reattach.testing.conformance.engine import Subject, message
from tests.support.clocks import LeapClock


class FailingEngine(Engine):
    """Fails with each of ``errors``, and then makes a summary."""

    def __init__(self, *errors: EngineError) -> None:
        self.errors = list(errors)
        self.requests = 0

    def models(self) -> Sequence[Model]:
        return ()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        self.requests += 1
        if self.errors:
            yield TextPart("A broken ")
            raise self.errors.pop(0)
        yield TextPart("All of it.")


def passing(*, retry_after_seconds: float | None = None) -> ModelError:
    error = ModelError("It broke.")
    error.may_pass = True
    error.retry_after_seconds = retry_after_seconds
    return error


async def summarized(engine: Engine, clock: LeapClock) -> str:
    summarizer = Summarizer(engine, "any/model", 8000, ModelSettings())
    compactor = Compactor(Plan(), summarizer, clock, window_tokens=8000)
    history = [message(Role.USER, "Hi."), message(Role.ASSISTANT, "Hello.")]
    turn = Subject(engine, "any/model").turn("And now?", history=history)
    made, _ = await compactor.compact(turn, 2, "requested", into_tokens=8000, may_drop=False)
    return made.summary.text


async def test_failures_that_may_pass_cost_the_waits_and_no_summary() -> None:
    engine, clock = FailingEngine(passing(), passing(retry_after_seconds=7.0)), LeapClock()
    assert await summarized(engine, clock) == "All of it."
    assert engine.requests == 3
    assert clock.passed_seconds == 1.0 + 7.0


async def test_the_third_failure_is_final() -> None:
    engine = FailingEngine(passing(), passing(), passing())
    with pytest.raises(ModelError, match="It broke"):
        await summarized(engine, LeapClock())
    assert engine.requests == 3


async def test_a_final_failure_is_not_repeated() -> None:
    engine = FailingEngine(ModelError("It is refused."))
    with pytest.raises(ModelError, match="refused"):
        await summarized(engine, LeapClock())
    assert engine.requests == 1
