"""OpenAI's Agents SDK, unmodified, against agents with tools."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.applications.programs import require_program
from tests.support import tool_functions
from tests.support.live_server import LiveServer

PROGRAM = Path(__file__).parent / "agents_client.py"
EXAMPLE = Path(__file__).parents[3] / "examples" / "openai_agents.py"
WAIT_SECONDS = 60.0


async def printed(program: Path, *arguments: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        require_program("python"),
        str(program),
        *arguments,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-2000:]
    return output.decode()


async def ran(live: LiveServer, agent: str, case: str, text: str) -> dict[str, Any]:
    output = await printed(PROGRAM, f"{live.url}/openai/v1", agent, case, text)
    outcome: dict[str, Any] = json.loads(output)
    return outcome


@pytest.fixture(autouse=True)
def installed() -> None:
    require_program("python")


async def test_a_tool_of_the_server_runs_once_and_is_an_item_of_the_result(
    live: LiveServer, agent: str
) -> None:
    outcome = await ran(live, agent, "plain", "[tool=add] Hi")
    assert outcome["items"] == ["ToolCallItem", "MessageOutputItem"]
    assert outcome["output"]
    assert outcome["streamed"]
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.parametrize("case", ["kept by the client", "continued"])
async def test_a_tool_of_the_client_runs_there_and_the_answer_goes_on(
    live: LiveServer, agent: str, case: str
) -> None:
    outcome = await ran(live, agent, case, "[client_tool=look] Where?")
    assert outcome["items"][-1] == "MessageOutputItem"
    assert "ToolCallOutputItem" in outcome["items"]
    assert "Marstal 1" in outcome["output"]
    assert len(await live.run_ids(agent_id=agent)) == 2


@pytest.mark.parametrize("case", ["approved", "approved by a client that keeps it"])
async def test_a_tool_that_needs_approval_runs_once_it_is_approved_there(
    live: LiveServer, agent: str, case: str
) -> None:
    ran_before = len(tool_functions.RAN)
    outcome = await ran(live, agent, case, "[tool=deploy] Go")
    assert "MCPApprovalRequestItem" in outcome["items"]
    assert "deploy success: deployed 1" in outcome["output"]
    assert len(tool_functions.RAN) == ran_before + 1


async def test_the_example_runs_tools_on_both_sides(live: LiveServer, agent: str) -> None:
    variables = {"REATTACH_URL": live.url, "REATTACH_AGENT": agent}
    theirs = await printed(EXAMPLE, **variables, REATTACH_ASK="[tool=add] Hi")
    assert theirs.splitlines() == ["tool_call_item", "message_output_item", "add success: 2", ""]
    ours = await printed(EXAMPLE, **variables, REATTACH_ASK="[client_tool=look][chunks=0] Hi")
    assert ours.splitlines()[:2] == ["tool_call_item", "tool_call_output_item"]
    assert "Island 1 is green." in ours
