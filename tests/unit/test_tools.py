"""Functions as tools, and what a call of one returns whatever it does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import structlog.testing
from pydantic_ai.models.test import TestModel

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StartupError, ToolError
from reattach.domain.events import StopReason
from reattach.domain.ids import AgentId, TenantId
from reattach.domain.limits import MAX_TENANT_TOOL_THREADS, MAX_TOOL_OUTPUT_CHARS, MAX_TOOL_THREADS
from reattach.domain.messages import ToolCallDelta, ToolCallPart, ToolReturnPart
from reattach.engine.base import Finished
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.testing.conformance.engine import Subject, collect, text_of
from reattach.tools import function as function_module
from reattach.tools.base import AttachedTool, Toolbox, ToolContext
from reattach.tools.calling import call_tool
from reattach.tools.function import FunctionTool, function_tools, tool
from reattach.tools.loop import ToolLoop
from reattach.tools.threads import Threads
from tests.support import tool_functions as functions

TOO_MUCH = (
    "The tool ran, but returned 10000000 characters, more than the "
    f"{MAX_TOOL_OUTPUT_CHARS} allowed. Ask it for less."
)


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """Catch the log lines, because showing a traceback would read files in the event loop."""
    with structlog.testing.capture_logs() as lines:
        yield lines


async def called(
    function: Callable[..., Any], arguments: str = '{"n": 1}', *, seconds: float = 10.0
) -> ToolReturnPart:
    made = FunctionTool(function, Threads())
    async with asyncio.timeout(20):
        return await call_tool(made, ToolCallPart("c", made.name, arguments), seconds=seconds)


def test_the_schema_is_of_the_signature_and_the_description_of_the_docstring() -> None:
    made = FunctionTool(functions.add, Threads())
    assert (made.name, made.description) == ("add", "Add two numbers.")
    assert made.parameters["required"] == ["n"]
    assert made.parameters["properties"]["n"]["description"] == "The number to add to."
    assert made.parameters["properties"]["more"]["default"] == 1
    assert not made.requires_approval
    assert FunctionTool(functions.deploy, Threads()).requires_approval


async def test_functions_return_text_or_json_sync_and_async() -> None:
    assert (await called(functions.add)).output == "2"
    assert (await called(functions.add, '{"n": 1, "more": 4}')).output == "5"
    returned = await called(functions.greet, "")
    assert (returned.status, json.loads(returned.output)) == ("success", {"hello": "you"})


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"n": "x"}', "{}", '{"n": 1, "z": 2}'])
async def test_arguments_that_do_not_fit_are_an_error_that_says_which(arguments: str) -> None:
    returned = await called(functions.add, arguments)
    assert returned.status == "error"
    assert returned.output.startswith("The arguments are invalid.")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (functions.explode, "The tool failed: ValueError."),
        (functions.refuse, "1 is not to be had"),
        (functions.leave, "The tool failed: SystemExit."),
        (
            functions.flood,
            TOO_MUCH,
        ),
    ],
)
async def test_a_tool_that_raises_or_floods_has_an_error_for_its_return(
    function: Callable[..., Any], text: str
) -> None:
    assert await called(function) == ToolReturnPart("c", function.__name__, "error", text)


@pytest.mark.parametrize("function", [functions.explode, functions.hang, functions.log_something])
async def test_log_lines_about_a_tool_have_the_id_of_its_run(function: Callable[..., Any]) -> None:
    made = FunctionTool(function, Threads())
    call = ToolCallPart("c", made.name, '{"n": 1}')
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        await call_tool(made, call, seconds=0.05, run_id="run-1")
    assert [line["run_id"] for line in lines] == ["run-1"]


@pytest.mark.parametrize("function", [functions.hang, functions.sleep_long])
async def test_a_tool_that_hangs_is_not_waited_for(function: Callable[..., Any]) -> None:
    returned = await called(function, seconds=0.05)
    assert returned.status == "error"
    assert returned.output == (
        "The tool did not return within 0.05 seconds. Whether it did its work is not known."
    )


async def test_functions_that_hang_use_up_their_threads_and_nobody_elses() -> None:
    threads = Threads()
    threads._busy = MAX_TOOL_THREADS
    made = FunctionTool(functions.add, threads)
    returned = await call_tool(made, ToolCallPart("c", "add", '{"n": 1}'), seconds=5)
    assert returned.status == "error"
    assert f"{MAX_TOOL_THREADS} earlier calls" in returned.output
    threads._busy -= 1
    returned = await call_tool(made, ToolCallPart("c", "add", '{"n": 1}'), seconds=5)
    assert returned.status == "success"
    assert threads._busy == MAX_TOOL_THREADS - 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing", "does not have the form package.module:function"),
        ("no.such.module:f", "cannot be imported: ModuleNotFoundError"),
        ("tests.support.tool_functions:missing", "cannot be imported: AttributeError"),
        ("tests.support.tool_functions:RAN", "is not a function"),
        ("tests.support.tool_functions:everything", "positional-only or variadic parameters"),
    ],
)
def test_a_tool_that_can_not_be_had_keeps_the_server_from_starting(name: str, text: str) -> None:
    with pytest.raises(StartupError, match=text):
        function_tools([name], Threads())


def test_installed_packages_bring_tools_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint("x", "tests.support.tool_functions:greet", group)]

    monkeypatch.setattr(function_module, "entry_points", points)
    names = ["tests.support.tool_functions:add", "tests.support.tool_functions:greet"]
    assert [one.name for one in function_tools(names, Threads())] == ["add", "greet"]


def test_two_tools_of_one_name_and_names_that_providers_refuse_stop_the_start() -> None:
    threads = Threads()
    made = [FunctionTool(functions.add, threads), FunctionTool(functions.add, threads)]
    with pytest.raises(StartupError, match="Two tools have the name add"):
        Toolbox(made)

    @tool(name="no spaces")
    def odd() -> None:
        pass

    with pytest.raises(StartupError, match="is not valid"):
        FunctionTool(odd, threads)


def test_an_agent_has_its_tools_in_its_order_and_none_that_are_gone() -> None:
    """D6: an approval that the operator requires is not for the agent to waive."""
    threads = Threads()
    box = Toolbox([FunctionTool(one, threads) for one in (functions.add, functions.deploy)])
    attached = box.attached_tools({"gone": None, "deploy": False, "add": True})
    assert [(one.tool.name, one.requires_approval) for one in attached] == [
        ("deploy", True),
        ("add", True),
    ]
    assert box.by_id(attached[0].tool.id) is attached[0].tool
    assert box.attached_tools({}) == []


async def test_a_providers_model_receives_the_tools_and_goes_on_with_their_returns() -> None:
    made = FunctionTool(functions.add, Threads())
    engine = PydanticAIEngine(models={"test/model": TestModel()})
    loop = ToolLoop(
        engine, [AttachedTool(made, requires_approval=False)], SystemClock(), call_seconds=5
    )
    deltas = await collect(loop, Subject(engine, "test/model").turn("add"))
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert {call.name for call in calls if call.name} == {"add"}
    assert not any(call.needs_approval for call in calls)
    [returned] = [delta for delta in deltas if isinstance(delta, ToolReturnPart)]
    assert returned.status == "success"
    assert json.loads(text_of(deltas)) == {"add": returned.output}
    assert deltas[-1] == Finished(StopReason.END_TURN)


def test_a_tool_of_some_tenants_does_not_exist_for_others() -> None:
    """D6: tools can be limited to tenants."""
    box = Toolbox([FunctionTool(one, Threads()) for one in (functions.add, functions.ledger)])
    wanted = {"add": None, "ledger": None}
    ours, theirs = box.for_tenant(TenantId("tenant-1")), box.for_tenant(TenantId("tenant-2"))
    assert [one.tool.name for one in ours.attached_tools(wanted)] == ["add", "ledger"]
    assert [one.tool.name for one in theirs.attached_tools(wanted)] == ["add"]
    ledger = ours.by_name("ledger")
    assert ledger is not None
    assert theirs.by_name("ledger") is theirs.by_id(ledger.id) is None
    assert [tool.name for tool in theirs.tools()] == ["add"]
    assert [tool.name for tool in box.tools()] == ["add", "ledger"]


@pytest.mark.parametrize("function", [functions.ledger, functions.aledger])
async def test_a_function_receives_the_tenant_and_no_model_can_name_another(
    function: Callable[..., Any],
) -> None:
    """D6: the parameter of ToolContext is filled in by the server alone."""
    made = FunctionTool(function, Threads())
    assert list(made.parameters["properties"]) == ["n"]
    context = ToolContext(TenantId("tenant-1"), AgentId("agent-1"))

    async def output(arguments: str) -> ToolReturnPart:
        call = ToolCallPart("c", made.name, arguments)
        return await call_tool(made, call, seconds=10, context=context)

    assert (await output('{"n": 1}')).output == "1 of tenant-1, agent-1"
    forged = await output('{"n": 1, "context": {"tenant": "tenant-2"}}')
    assert forged.status == "error"


async def test_calls_of_one_tenant_that_hang_leave_threads_for_another() -> None:
    """D6: each tenant has a part of the threads."""
    threads, gate = Threads(), threading.Event()
    hanging = [
        asyncio.create_task(threads.run(gate.wait, TenantId("tenant-1")))
        for _ in range(MAX_TENANT_TOOL_THREADS)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ToolError, match="of your tools are still running"):
        await threads.run(lambda: 1, TenantId("tenant-1"))
    assert await threads.run(lambda: 2, TenantId("tenant-2")) == 2
    gate.set()
    await asyncio.gather(*hanging)
    assert await threads.run(lambda: 3, TenantId("tenant-1")) == 3
