from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import (
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Delta, Finished, StepFinished, Turn
from reattach.engine.function import FunctionEngine
from reattach.testing.conformance.engine import Subject, collect, text_of


async def greet(turn: Turn) -> AsyncIterator[str]:
    yield "Hello, "
    yield ""
    yield turn.input[-1].text


def subject(engine: FunctionEngine, name: str = "answer") -> Subject:
    return Subject(engine=engine, model=f"function/{name}")


async def test_a_function_answers_under_its_own_name() -> None:
    engine = FunctionEngine(greet)
    asked = subject(engine, "greet")
    deltas = await collect(engine, asked.turn("world"))
    assert deltas == [
        TextPart("Hello, "),
        TextPart("world"),
        StepFinished(Usage(step_count=1)),
        Finished(StopReason.END_TURN),
    ]


async def test_several_functions_answer_by_name() -> None:
    engine = FunctionEngine({"polite": greet})

    @engine.model("rude")
    async def rude(turn: Turn) -> AsyncIterator[str]:
        yield "No."

    assert [model.handle for model in engine.models()] == ["function/polite", "function/rude"]
    rude_turn = subject(engine, "rude").turn("please")
    assert text_of(await collect(engine, rude_turn)) == "No."


async def test_a_function_with_steps_of_its_own_keeps_them() -> None:
    step = StepFinished(Usage(prompt_tokens=1, total_tokens=1, step_count=1))

    async def answer(turn: Turn) -> AsyncIterator[str | Delta]:
        yield ReasoningPart("hm")
        yield step
        yield "x"
        yield step
        yield Finished(StopReason.MAX_STEPS)
        raise AssertionError("nobody asks for what comes after Finished")

    engine = FunctionEngine(answer)
    deltas = await collect(engine, subject(engine).turn())
    assert deltas == [
        ReasoningPart("hm"),
        step,
        TextPart("x"),
        step,
        Finished(StopReason.MAX_STEPS),
    ]


async def test_closing_the_turn_closes_the_function() -> None:
    closed = []

    async def answer(turn: Turn) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.append(True)

    engine = FunctionEngine(answer)
    deltas = cast(AsyncGenerator[Delta], engine.run(subject(engine).turn()))
    await anext(deltas)
    await deltas.aclose()
    assert closed == [True]


async def test_an_error_of_the_function_passes_through() -> None:
    async def answer(turn: Turn) -> AsyncIterator[str]:
        yield "x"
        raise LookupError("no such thing")

    engine = FunctionEngine(answer)
    with pytest.raises(LookupError, match="no such thing"):
        await collect(engine, subject(engine).turn())


async def test_what_is_no_async_generator_is_refused_with_the_models_name() -> None:
    def answer(turn: Turn) -> Any:
        return "hello"

    engine = FunctionEngine(answer)
    with pytest.raises(TypeError, match=r"function/answer must be an async generator, not.* str"):
        await collect(engine, subject(engine).turn())


def a_generator(turn: Turn) -> Any:
    yield "hello"


async def a_coroutine(turn: Turn) -> str:
    return "hello"


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ("x", "'answer' must be an async generator function; got str"),
        ({"a": 5}, "'a' must be an async generator function; got int"),
        (a_generator, "'a_generator' must be .*; got a generator function"),
        (a_coroutine, "'a_coroutine' must be .*; got a coroutine function"),
    ],
)
def test_what_cannot_be_an_async_generator_function_is_refused_at_once(
    functions: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        FunctionEngine(functions)


async def test_what_is_no_delta_is_refused_with_the_models_name() -> None:
    async def answer(turn: Turn) -> AsyncIterator[Any]:
        yield 3

    engine = FunctionEngine(answer)
    with pytest.raises(TypeError, match=r"function/answer yielded int"):
        await collect(engine, subject(engine).turn())


def test_a_name_is_given_once() -> None:
    engine = FunctionEngine({"a": greet})
    with pytest.raises(ValueError, match="'a' is empty or taken"):
        engine.model("a")
    with pytest.raises(ValueError, match="'' is empty"):
        engine.model("")


async def test_a_function_may_leave_calls_to_the_client_and_run_those_it_approved() -> None:
    asked: list[Turn] = []

    async def buyer(turn: Turn) -> AsyncIterator[str | Delta]:
        asked.append(turn)
        for call in turn.due:
            yield ToolReturnPart(call.tool_call_id, call.name, "success", "paid")
        if turn.due:
            yield "Bought."
        else:
            yield ToolCallDelta("call-1", name="pay", arguments="{}", needs_approval=True)

    engine = FunctionEngine(buyer)
    first = subject(engine, "buyer").turn("buy")
    assert ToolCallDelta("call-1", "pay", "{}", needs_approval=True) in await collect(engine, first)
    due = [ToolCallPart("call-1", "pay", "{}", needs_approval=True)]
    deltas = await collect(engine, replace(first, input=[], due=due))
    assert deltas[0] == ToolReturnPart("call-1", "pay", "success", "paid")
    assert text_of(deltas) == "Bought."
