"""OpenAI's Agents SDK, unmodified, against agents with tools."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.applications.programs import require_program
from tests.support.live_server import LiveServer

PROGRAM = Path(__file__).parent / "agents_client.py"
WAIT_SECONDS = 60.0


async def ran(live: LiveServer, agent: str, case: str, text: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        require_program("python"),
        str(PROGRAM),
        f"{live.url}/openai/v1",
        agent,
        case,
        text,
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
