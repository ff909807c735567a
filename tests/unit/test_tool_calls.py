"""Calls as engines say them: ids of their own, whole names, and tools that nobody has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.events import StopReason, Usage
from reattach.domain.limits import MAX_NAMED_TOOLS
from reattach.domain.messages import (
    Message,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import ClientTool, Delta, Finished, StepFinished, Turn
from reattach.engine.calls import CallIds, CallStream
from reattach.engine.function import FunctionEngine
from reattach.testing.conformance.engine import Subject, collect, message, text_of
from reattach.tools.base import AttachedTool
from reattach.tools.function import FunctionTool
from reattach.tools.loop import ToolLoop
from reattach.tools.threads import Threads
from tests.support import tool_functions as functions


def heard(*deltas: Delta, taken: Sequence[str] = ()) -> list[Delta]:
    stream = CallStream(CallIds(set(taken).__contains__))
    passed = [one for delta in deltas for one in stream.take(delta)]
    return [*passed, *stream.flush()]


def whole(deltas: Sequence[Delta]) -> list[tuple[str, str, str]]:
    """The calls of the deltas: id, name and arguments."""
    calls: dict[str, tuple[str, str]] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            name, arguments = calls.get(delta.tool_call_id, ("", ""))
            calls[delta.tool_call_id] = (
                name + (delta.name or ""),
                arguments + (delta.arguments or ""),
            )
    return [(call_id, *call) for call_id, call in calls.items()]


def call(call_id: str, name: str | None = None, arguments: str | None = None) -> ToolCallDelta:
    return ToolCallDelta(call_id, name, arguments)


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        ([call("c", "se"), call("c", "arch", "{}")], [("c", "search", "{}")]),
        ([call("c", "se"), call("c", "arch"), call("c", None, "{}")], [("c", "search", "{}")]),
        ([call("c", "search"), call("c", "search", "{"), call("c", "search", "}")],
         [("c", "search", "{}")]),
        ([call("c", "search"), call("c", None, "{}")], [("c", "search", "{}")]),
        ([call("c", "now")], [("c", "now", "")]),
        ([call("c", None, "{}")], [("c", "", "{}")]),
        ([call("c", "add", "{}"), call("c", "add", "{}")],
         [("c", "add", "{}"), ("c-2", "add", "{}")]),
        ([call("c", "add", "{}"), call("c", "get", "{}")],
         [("c", "add", "{}"), ("c-2", "get", "{}")]),
        ([call("c", "add"), call("c", None, "{}"), call("c", "get"), call("c", None, "{}")],
         [("c", "add", "{}"), ("c-2", "get", "{}")]),
        ([call("", "add", "{}"), call("", "get", "{}")],
         [("call-1", "add", "{}"), ("call-2", "get", "{}")]),
        ([call("a", "add"), call("b", "get"), call("a", None, "{}"), call("b", None, "{}")],
         [("a", "add", "{}"), ("b", "get", "{}")]),
        ([call("a", "now"), call("b", "get", "{}")], [("a", "now", ""), ("b", "get", "{}")]),
        ([call("a", "add"), TextPart("x"), call("a", None, "{}")], [("a", "add", "{}")]),
    ],
)  # fmt: skip
def test_calls_of_one_answer_are_kept_apart(
    deltas: Sequence[Delta], calls: Sequence[tuple[str, str, str]]
) -> None:
    """A5, A8: an id that comes twice, an empty one, a name in pieces, one that is repeated."""
    assert whole(heard(*deltas)) == calls


def test_an_id_that_the_conversation_has_already_is_not_used_again() -> None:
    """A5: a later answer may not take the id of an earlier call."""
    deltas = heard(call("c", "add", "{}"), call("c", "add", "{}"), taken=["c", "c-3"])
    assert [call_id for call_id, *_ in whole(deltas)] == ["c-2", "c-4"]


def test_a_return_of_the_engines_own_belongs_to_its_call() -> None:
    """A5: returns follow the ids of their calls."""
    done = StepFinished(Usage(step_count=1))
    deltas = heard(
        call("c", "add", "{}"),
        call("c", "get", "{}"),
        ToolReturnPart("c", "add", "success", "1"),
        ToolReturnPart("c", "get", "success", "2"),
        done,
        call("c", "add", "{}"),
        ToolReturnPart("c", "add", "success", "3"),
    )
    returns = [(one.tool_call_id, one.output) for one in deltas if isinstance(one, ToolReturnPart)]
    assert returns == [("c", "1"), ("c-2", "2"), ("c-3", "3")]


# The loop.


class Model:
    """A model that says the deltas of each step in turn, and keeps the turns that it receives."""

    def __init__(self, *steps: Sequence[Delta], own_tools: Sequence[str] | None = ()) -> None:
        self.turns: list[Turn] = []
        self._steps = list(steps)
        self.engine = FunctionEngine({"model": self._answer}, own_tools=own_tools)

    async def _answer(self, turn: Turn) -> AsyncIterator[str | Delta]:
        self.turns.append(turn)
        if not self._steps:
            yield "Done."
            return
        for delta in self._steps.pop(0):
            yield delta

    async def run(
        self,
        *,
        client_tools: Sequence[ClientTool] = (),
        history: Sequence[Message] = (),
        requires_approval: bool = False,
        max_steps: int = 50,
        due: Sequence[ToolCallPart] = (),
    ) -> list[Delta]:
        attached = AttachedTool(
            FunctionTool(functions.add, Threads()), requires_approval=requires_approval
        )
        loop = ToolLoop(self.engine, [attached], SystemClock(), call_seconds=5)
        asked = Subject(self.engine, "function/model").turn("add", history=history)
        asked = replace(asked, client_tools=client_tools, max_steps=max_steps, due=due)
        return await collect(loop, asked)


def waiting(call_id: str, name: str, arguments: str = '{"n": 1}') -> ToolCallDelta:
    return ToolCallDelta(call_id, name, arguments, needs_approval=True)


def returns_of(deltas: Sequence[Delta]) -> dict[str, tuple[str, str]]:
    return {
        one.tool_call_id: (one.status, one.output)
        for one in deltas
        if isinstance(one, ToolReturnPart)
    }


@pytest.mark.parametrize(
    "name", ["serch", "functions.add", " add ", "", "ADD", "add()", "x" * 9999]
)
async def test_a_call_of_a_tool_that_nobody_has_is_answered_and_the_good_ones_run(
    name: str,
) -> None:
    """A8: the call gets an error that names the tools, and the model goes on."""
    model = Model([waiting("a", name), waiting("b", "add")])
    deltas = await model.run()
    returns = returns_of(deltas)
    assert returns["b"] == ("success", "2")
    status, output = returns["a"]
    assert status == "error"
    assert "The tools are: add." in output
    assert len(output) < 300
    assert not any(one.needs_approval for one in deltas if isinstance(one, ToolCallDelta))
    assert text_of(deltas) == "Done."
    assert deltas[-1] == Finished(StopReason.END_TURN)
    [answer] = [one for one in model.turns[1].input if one.role is Role.TOOL]
    assert {part.tool_call_id for part in answer.parts if isinstance(part, ToolReturnPart)} == {
        "a", "b",
    }  # fmt: skip


async def test_a_call_of_a_tool_that_nobody_has_does_not_wait_with_a_clients_call() -> None:
    """A8: only the call that a client can answer is left waiting."""
    model = Model([waiting("a", "serch"), waiting("b", "look")])
    deltas = await model.run(client_tools=[ClientTool("look", None, None)])
    approvals = {
        one.tool_call_id: one.needs_approval for one in deltas if isinstance(one, ToolCallDelta)
    }
    assert approvals == {"a": False, "b": True}
    assert "The tools are: add, look." in returns_of(deltas)["a"][1]
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)
    assert len(model.turns) == 1


async def test_a_call_of_a_tool_that_nobody_has_does_not_wait_with_an_approval() -> None:
    """A8: the same beside a tool of the server that needs approval."""
    model = Model([waiting("a", "serch"), waiting("b", "add")])
    deltas = await model.run(requires_approval=True)
    assert returns_of(deltas).keys() == {"a"}
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)


async def test_an_approved_call_of_a_tool_that_is_gone_is_answered() -> None:
    """A8: a tool that the server had when the call was made."""
    gone = ToolCallPart("a", "deploy", "{}", needs_approval=True)
    model = Model()
    deltas = await model.run(due=[gone])
    assert deltas[0] == ToolReturnPart(
        "a",
        "deploy",
        "error",
        'There is no tool "deploy". The tools are: add. Call one by its exact name.',
    )
    assert text_of(deltas) == "Done."


async def test_a_model_that_calls_nothing_else_ends_with_max_steps() -> None:
    """A8: unknown calls are bounded as others are."""
    done = StepFinished(Usage(step_count=1))
    steps: list[list[Delta]] = [[waiting(f"c{n}", "serch"), done] for n in range(5)]
    deltas = await Model(*steps).run(max_steps=3)
    assert len(returns_of(deltas)) == 3
    assert deltas[-1] == Finished(StopReason.MAX_STEPS)


async def test_the_tools_that_are_named_are_bounded() -> None:
    """A8: an agent may have hundreds of tools."""
    names = [ClientTool(f"tool_{n:03}", None, None) for n in range(256)]
    deltas = await Model([waiting("a", "serch")]).run(client_tools=names)
    _, output = returns_of(deltas)["a"]
    assert output.count("tool_") == MAX_NAMED_TOOLS - 1
    assert ", and 193 more." in output


async def test_an_engine_with_tools_of_its_own_keeps_them() -> None:
    """A8: an engine that does not say which tools it has may have any but a nameless one."""
    deltas = await Model([waiting("a", "pay"), waiting("b", "")], own_tools=None).run()
    assert returns_of(deltas).keys() == {"b"}
    assert deltas[-1] == Finished(StopReason.REQUIRES_APPROVAL)
    deltas = await Model([waiting("a", "pay"), waiting("b", "play")], own_tools=["pay"]).run()
    assert returns_of(deltas).keys() == {"b"}
    assert "The tools are: add, pay." in returns_of(deltas)["b"][1]


async def test_two_calls_of_one_id_both_run_and_the_model_sees_both() -> None:
    """A5: the second call runs under an id of its own."""
    history = [
        replace_parts(message(Role.ASSISTANT, ""), ToolCallPart("c", "add", "{}")),
        replace_parts(message(Role.TOOL, ""), ToolReturnPart("c", "add", "success", "0")),
    ]
    model = Model([waiting("c", "add", '{"n": 1}'), waiting("c", "add", '{"n": 2}')])
    deltas = await model.run(history=history)
    assert returns_of(deltas) == {"c-2": ("success", "2"), "c-3": ("success", "3")}
    parts = [part for one in model.turns[1].history[3:] for part in one.parts]
    assert [part.tool_call_id for part in parts if isinstance(part, ToolCallPart)] == ["c-2", "c-3"]


def replace_parts(one: Message, *parts: ToolCallPart | ToolReturnPart) -> Message:
    return Message(id=one.id, role=one.role, parts=parts, created_at=one.created_at)
