"""A kept answer that is refused as too long is replaced, and one that is followed is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from reattach.agent.compaction.engine import CompactingEngine
from reattach.agent.compaction.summary import Compactor, Plan, Summarizer
from reattach.domain.errors import ContextWindowError
from reattach.domain.messages import Role, TextPart
from reattach.engine.base import AnswerKept, Compacted, Delta, ModelSettings, Partial, Turn
from reattach.engine.function import FunctionEngine
from reattach.engine.scripted import ScriptedEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from tests.support.clocks import LeapClock

WINDOW_TOKENS = 100


def compacting(engine: FunctionEngine) -> CompactingEngine:
    clock = LeapClock()
    summarizer = Summarizer(ScriptedEngine(), "scripted/echo", 10_000, ModelSettings())
    compactor = Compactor(Plan(), summarizer, clock, window_tokens=WINDOW_TOKENS)
    return CompactingEngine(engine, compactor, clock)


def turn_of(engine: FunctionEngine, *, words: int) -> Turn:
    history = [message(role, "word " * words) for role in (Role.USER, Role.ASSISTANT) * 4]
    return Subject(engine, "function/kept").turn("Go on.", history=history)


@pytest.mark.parametrize("upstream_id", [None, "resp_0"])
async def test_a_kept_answer_that_is_refused_as_too_long_is_replaced_after_a_summary(
    upstream_id: str | None,
) -> None:
    asked: list[Turn] = []
    engine = FunctionEngine()

    @engine.model("kept")
    async def kept(turn: Turn) -> AsyncIterator[Delta]:
        asked.append(turn)
        yield AnswerKept("resp_1")
        if len(asked) == 1:
            raise ContextWindowError("too long")
        yield TextPart("Hello.")

    partial = None if upstream_id is None else Partial((), upstream_id=upstream_id)
    turn = replace(turn_of(engine, words=3), partial=partial)
    deltas = await collect(compacting(engine), turn)
    assert any(isinstance(delta, Compacted) for delta in deltas)
    assert text_of(deltas) == "Hello."
    assert [one.partial for one in asked] == [partial, None]


@pytest.mark.promise("P18", "P19")
@pytest.mark.parametrize(
    "partial",
    [Partial((), upstream_id="resp_1"), Partial([message(Role.ASSISTANT, "Begun. ")])],
    ids=["kept", "begun"],
)
async def test_an_answer_goes_on_without_a_summary_before_its_rest(partial: Partial) -> None:
    engine = FunctionEngine()

    @engine.model("kept")
    async def kept(turn: Turn) -> AsyncIterator[Delta]:
        yield TextPart("rest")

    turn = turn_of(engine, words=20)
    deltas = await collect(compacting(engine), turn)
    assert any(isinstance(delta, Compacted) for delta in deltas)
    deltas = await collect(compacting(engine), replace(turn, partial=partial))
    assert not any(isinstance(delta, Compacted) for delta in deltas)
