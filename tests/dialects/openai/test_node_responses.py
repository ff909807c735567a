"""OpenAI's Node client, unmodified; ``responses.mjs`` makes all its calls in one process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_server import LiveServer
from tests.support.missing import skip_or_fail
from tests.support.typescript_sdk import node_or_why_not

DIRECTORY = Path(__file__).parents[1] / "node"
WAIT_SECONDS = 90.0


@pytest.fixture(scope="module")
async def agent(live: LiveServer) -> str:
    made: str = (await live.agent(tools=["add"]))["id"]
    live.gates.open(made)
    return made


@pytest.fixture(scope="module")
async def outcome(live: LiveServer, agent: str) -> dict[str, Any]:
    node, why_not = node_or_why_not()
    if not node or not (DIRECTORY / "node_modules/openai").is_dir():
        skip_or_fail(why_not or "OpenAI's Node client is not installed: run scripts/setup")
    process = await asyncio.create_subprocess_exec(
        node,
        "responses.mjs",
        f"{live.url}/openai/v1",
        agent,
        "[think=1][tool=add] Hi",
        cwd=DIRECTORY,
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
    found: dict[str, Any] = json.loads(output)
    return found


async def test_a_stream_that_breaks_at_any_event_is_resumed_exactly(
    outcome: dict[str, Any],
) -> None:
    assert outcome["cutAtEveryEvent"]["differing"] == []
    assert outcome["cutAtEveryEvent"]["cuts"] > 15


async def test_the_helper_follows_a_response_by_its_id_to_the_same_end(
    outcome: dict[str, Any],
) -> None:
    helper = outcome["helper"]
    assert (helper["same"], helper["first"]) == (True, 6)
    assert helper["kinds"] == ["mcp_call", "reasoning", "message"]
    assert helper["text"]


async def test_a_response_is_cancelled_once_however_often_it_is_asked_for(
    outcome: dict[str, Any],
) -> None:
    assert outcome["cancelledTwice"] == ["queued", "cancelled", "cancelled", "cancelled"]


async def test_repeated_requests_start_one_response(
    live: LiveServer, agent: str, outcome: dict[str, Any]
) -> None:
    assert outcome["racing"] == 1
    assert outcome["retried"] == {"status": "completed", "retryCounts": ["0", "1"]}
    runs = await live.got("/v1/runs/", agent_id=agent, limit=1000)
    again = [await live.got(f"/v1/runs/{run['id']}/messages") for run in runs]
    texts = [messages[0].get("content") for messages in again if messages]
    assert texts.count("Sent again by the client") == 1


async def test_tools_failures_and_conversations_are_those_of_the_client(
    outcome: dict[str, Any],
) -> None:
    assert "Marstal" in outcome["toolOfTheClient"]
    assert outcome["failures"] == {
        "unknown": "NotFoundError 404 not_found",
        "invalid": "UnprocessableEntityError 422 validation_error",
        "failed": "failed",
    }
    assert outcome["conversation"] == {
        "items": ["user", "assistant"],
        "gone": "NotFoundError 404 not_found",
    }
