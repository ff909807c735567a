"""OpenAI's Agents SDK, unmodified, against agents with tools."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.applications.programs import require_program
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


CASES = {
    "plain": "[tool=add] Hi",
    "kept by the client": "[client_tool=look] Where?",
    "continued": "[client_tool=look] Where?",
    "approved": "[tool=deploy] Go",
    "approved without the server": "[tool=deploy] Go",
}


@pytest.fixture(scope="module")
async def agents(live: LiveServer) -> dict[str, str]:
    """An agent for each case."""
    made = {case: (await live.agent(tools=["add", "deploy"]))["id"] for case in CASES}
    for agent in made.values():
        live.gates.open(agent)
    return made


@pytest.fixture(scope="module")
async def outcomes(live: LiveServer, agents: dict[str, str]) -> dict[str, Any]:
    """The outcomes of all cases, in one process, because importing the SDK takes seconds."""
    asked = {case: (agents[case], text) for case, text in CASES.items()}
    output = await printed(PROGRAM, f"{live.url}/openai/v1", json.dumps(asked))
    found: dict[str, Any] = json.loads(output)
    return found


async def test_a_tool_of_the_server_runs_once_and_is_an_item_of_the_result(
    live: LiveServer, agents: dict[str, str], outcomes: dict[str, Any]
) -> None:
    outcome = outcomes["plain"]
    assert outcome["items"] == ["ToolCallItem", "MessageOutputItem"]
    assert outcome["output"]
    assert outcome["streamed"]
    assert len(await live.run_ids(agent_id=agents["plain"])) == 1


@pytest.mark.parametrize("case", ["kept by the client", "continued"])
async def test_a_tool_of_the_client_runs_there_and_the_answer_goes_on(
    live: LiveServer, agents: dict[str, str], outcomes: dict[str, Any], case: str
) -> None:
    outcome = outcomes[case]
    assert outcome["items"][-1] == "MessageOutputItem"
    assert "ToolCallOutputItem" in outcome["items"]
    assert "Marstal 1" in outcome["output"]
    assert len(await live.run_ids(agent_id=agents[case])) == 2


@pytest.mark.parametrize("case", ["approved", "approved without the server"])
async def test_a_tool_that_needs_approval_runs_once_it_is_approved_there(
    live: LiveServer, agents: dict[str, str], outcomes: dict[str, Any], case: str
) -> None:
    outcome = outcomes[case]
    assert "MCPApprovalRequestItem" in outcome["items"]
    assert "deploy success: deployed 1" in outcome["output"]
    items = [
        item
        for run in await live.got("/v1/runs/", agent_id=agents[case])
        for item in await live.got(f"/v1/runs/{run['id']}/messages")
        if item["message_type"] == "tool_return_message"
    ]
    assert [item["tool_return"] for item in items] == ["deployed 1"]


async def test_the_example_runs_a_tool_of_its_own(live: LiveServer, agent: str) -> None:
    output = await printed(
        EXAMPLE,
        REATTACH_URL=live.url,
        REATTACH_AGENT=agent,
        REATTACH_ASK="[client_tool=look][chunks=0] Hi",
    )
    assert output.splitlines()[:2] == ["tool_call_item", "tool_call_output_item"]
    assert "Island 1 is green." in output
