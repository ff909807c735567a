"""A server whose agent answers through an agent of another server, over the Responses API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.live_server import WAIT_SECONDS, LiveServer

Json = dict[str, Any]


@dataclass
class Downstream:
    """The server B, with an agent that answers through an agent of the server A."""

    process: ServerProcess
    client: httpx2.AsyncClient
    upstream: str
    """The agent of A."""
    conversation: str = ""

    async def send(self, text: str) -> str:
        """Send in the background, and return the id of the run."""
        body = {"input": text, "background": True, "stream_tokens": True}
        path = f"/v1/conversations/{self.conversation}/messages"
        async with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, await response.aread()
            return response.headers["x-run-id"]

    async def events(self, run_id: str, *, until: str = "[DONE]") -> list[Json]:
        """Read the events of a run up to the first with ``until`` in it."""
        events: list[Json] = []
        path = f"/v1/runs/{run_id}/stream"
        async with (
            asyncio.timeout(WAIT_SECONDS),
            self.client.stream("POST", path, json={"include_pings": False}) as response,
        ):
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    events.append(json.loads(line.removeprefix("data: ")))
                if until in line:
                    break
        return events


@pytest.fixture(scope="module")
async def connected(
    live: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Downstream]:
    upstream: str = (await live.agent(tools=["add"]))["id"]
    environment = {
        "OPENAI_BASE_URL": f"{live.url}/openai/v1",
        "OPENAI_API_KEY": "none",
        "REATTACH_MODELS": f"openai-responses/{upstream}",
        "REATTACH_TOOLS": "tests.support.tool_functions:greet",
    }
    process = ServerProcess(tmp_path_factory.mktemp("downstream"), environment=environment)
    await asyncio.to_thread(process.start)
    try:
        async with httpx2.AsyncClient(base_url=process.url, timeout=WAIT_SECONDS) as client:
            yield Downstream(process, client, upstream)
    finally:
        await asyncio.to_thread(process.close)


@pytest.fixture
async def downstream(live: LiveServer, connected: Downstream) -> Downstream:
    """The server with a new conversation, before which its agent upstream answered nothing."""
    live.gates.open(connected.upstream)
    for run in await generations(live, connected.upstream):
        assert (await live.client.delete(f"/v1/runs/{run['id']}")).is_success
    body = {"model": f"openai-responses/{connected.upstream}", "tools": ["greet"]}
    agent = (await connected.client.post("/v1/agents/", json=body)).json()["id"]
    made = await connected.client.post(f"/v1/conversations/?agent_id={agent}", json={})
    connected.conversation = made.json()["id"]
    return connected


def joined(events: list[Json], kind: str, member: str) -> str:
    return "".join(one[member] for one in events if one["message_type"] == kind)


async def generations(live: LiveServer, agent: str) -> list[Json]:
    found: list[Json] = await live.got("/v1/runs/", agent_id=agent)
    return found


@pytest.mark.promise("P19")
async def test_an_answer_goes_on_upstream_when_its_server_is_killed_and_is_generated_once(
    live: LiveServer, downstream: Downstream
) -> None:
    live.gates.hold(downstream.upstream, 5)
    run_id = await downstream.send("[think=2][chunks=8] Hi")
    await live.gates.reached(downstream.upstream, 5)
    before = await downstream.events(run_id, until='"t2 "')
    assert joined(before, "assistant_message", "content") == "t0 t1 t2 "
    await asyncio.to_thread(downstream.process.kill)
    await asyncio.to_thread(downstream.process.start)
    live.gates.open(downstream.upstream)
    events = await downstream.events(run_id)
    expected = "".join(f"t{number} " for number in range(8))
    text = joined(events, "assistant_message", "content")
    assert text.startswith(expected)
    assert text.count("t5 ") == 1
    assert joined(events, "reasoning_message", "reasoning") == "r0 r1 "
    assert [one["seq_id"] for one in events] == list(range(1, len(events) + 1))
    [generation] = await generations(live, downstream.upstream)
    assert generation["status"] == "completed"


async def test_a_conversation_goes_through_another_server_with_tools_on_both(
    live: LiveServer, downstream: Downstream
) -> None:
    theirs = await downstream.events(await downstream.send("[tool=add] One"))
    assert joined(theirs, "assistant_message", "content") == "add success: 2\n"
    assert "tool_call_message" not in {one["message_type"] for one in theirs}
    ours = await downstream.events(
        await downstream.send("[client_tool=greet][arguments={}][chunks=0] Two")
    )
    [returned] = [one for one in ours if one["message_type"] == "tool_return_message"]
    assert json.loads(returned["tool_return"]) == {"hello": "you"}
    assert "greet success" in joined(ours, "assistant_message", "content")
    history = await downstream.events(await downstream.send("[history] Three"))
    lines = joined(history, "assistant_message", "content")
    for part in ("One", "Two", "add success", "greet success"):
        assert part in lines
    assert len(await generations(live, downstream.upstream)) == 4


async def test_a_cancel_reaches_the_answer_upstream(
    live: LiveServer, downstream: Downstream
) -> None:
    live.gates.hold(downstream.upstream, 2)
    run_id = await downstream.send("[chunks=8] Hi")
    await live.gates.reached(downstream.upstream, 2)
    await downstream.events(run_id, until='"t1 "')
    cancelled = await downstream.client.post(f"/v1/runs/{run_id}/cancel")
    assert cancelled.json() == {run_id: "cancelled"}
    [generation] = await generations(live, downstream.upstream)
    ended = await live.ended(generation["id"])
    assert ended["status"] == "cancelled"
