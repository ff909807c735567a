"""Runs that are sent in one dialect, followed in every other one and cancelled in a third."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from letta_client import AsyncLetta
from openai import AsyncOpenAI

from reattach.domain.ids import RunId, new_uuid
from reattach.wire.dialects.openai_items import response_id
from tests.dialects.openai.clients import Cutting, openai_client
from tests.support.asgi_server import strict_sdk
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening

TEXT = "[chunks=6]"
ANSWER = "t0 t1 t2 t3 t4 t5 "


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


@dataclass
class World:
    """One agent, whose answers wait in the middle, and the clients."""

    live: LiveServer
    agent: str
    openai: AsyncOpenAI
    letta: AsyncLetta


@pytest.fixture
async def world(live: LiveServer) -> AsyncIterator[World]:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 3)
    async with (
        Cutting() as network,
        openai_client(live.url, network) as openai,
        strict_sdk(live.url) as letta,
    ):
        yield World(live, agent, openai, letta)


# Sends. Each leaves while the run is open.


async def post(world: World, path: str, body: dict[str, Any]) -> None:
    async with world.live.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        await world.live.gates.reached(world.agent, 3)


async def by_letta(world: World) -> None:
    thread = (await world.live.conversation(world.agent))["id"]
    body = {"input": TEXT, "background": True, "stream_tokens": True}
    await post(world, f"/v1/conversations/{thread}/messages", body)


async def by_responses(world: World) -> None:
    await world.openai.responses.create(model=world.agent, input=TEXT, background=True)
    await world.live.gates.reached(world.agent, 3)


async def by_chat_completions(world: World) -> None:
    stream = await world.openai.chat.completions.create(
        model=world.agent, messages=[{"role": "user", "content": TEXT}], stream=True
    )
    await world.live.gates.reached(world.agent, 3)
    await stream.close()


async def by_ai_sdk(world: World) -> None:
    parts = [{"type": "text", "text": TEXT}]
    message = {"id": new_uuid(), "role": "user", "parts": parts}
    body = {"id": new_uuid(), "messages": [message], "trigger": "submit-message"}
    await post(world, f"/ai-sdk/{world.agent}/chat", body)


async def by_ag_ui(world: World) -> None:
    body = {
        "threadId": new_uuid(),
        "runId": new_uuid(),
        "state": {},
        "messages": [{"id": new_uuid(), "role": "user", "content": TEXT}],
        "tools": [],
        "context": [],
        "forwardedProps": {},
    }
    await post(world, f"/ag-ui/{world.agent}", body)


SENDS: dict[str, Callable[[World], Awaitable[None]]] = {
    "letta": by_letta,
    "responses": by_responses,
    "chat-completions": by_chat_completions,
    "ai-sdk": by_ai_sdk,
    "ag-ui": by_ag_ui,
}


# Readers, each of which returns the text of the answer.


async def in_letta(world: World, run: str) -> str:
    stream = await world.letta.conversations.messages.stream("default", run_id=run)
    return "".join(
        [str(one.content) async for one in stream if one.message_type == "assistant_message"]
    )


async def in_responses(world: World, run: str) -> str:
    stream = await world.openai.responses.retrieve(response_id(RunId(run)), stream=True)
    return "".join([one.delta async for one in stream if one.type == "response.output_text.delta"])


async def in_durable_streams(world: World, run: str) -> str:
    found, query = "", {"offset": "-1", "live": "sse"}
    async with world.live.client.stream("GET", f"/v1/runs/{run}/log", params=query) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:["):
                for event in json.loads(line[5:]):
                    if event["message_type"] == "assistant_message":
                        found += event["content"]
    return found


READERS: dict[str, Callable[[World, str], Coroutine[Any, Any, str]]] = {
    "letta": in_letta,
    "responses": in_responses,
    "durable-streams": in_durable_streams,
}


async def only_run(world: World) -> str:
    (run,) = await world.live.run_ids(agent_id=world.agent)
    return run


@pytest.mark.parametrize("sender", SENDS)
async def test_a_run_of_one_client_is_followed_by_all_others_to_the_same_answer(
    world: World, sender: str
) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await SENDS[sender](world)
        run = await only_run(world)
        following = [asyncio.create_task(read(world, run)) for read in READERS.values()]
        readers = world.live.context.runs.readers
        while len([one for one in readers if one.run_id == run]) < len(READERS):
            await asyncio.sleep(0)
        await world.live.ended(run)
        live_answers = [await one for one in following]
        replayed = [await read(world, run) for read in READERS.values()]
    assert live_answers == replayed == [ANSWER] * len(READERS)
    assert await world.live.run_ids(agent_id=world.agent) == [run]
    frames = (await world.live.got(f"/v1/runs/{run}/frames", limit=100))["items"]
    assert frames[-1]["type"] == "usage_statistics"


@pytest.mark.parametrize("sender", SENDS)
async def test_a_run_of_any_client_is_cancelled_by_another_and_all_readers_see_its_end(
    world: World, sender: str
) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await SENDS[sender](world)
        run = await only_run(world)
        following = asyncio.create_task(in_durable_streams(world, run))
        if sender == "responses":
            await world.live.made(f"/v1/runs/{run}/cancel", {})
        else:
            cancelled = await world.openai.responses.cancel(response_id(RunId(run)))
            assert cancelled.status == "cancelled"
        answer = await following
    assert ANSWER.startswith(answer)
    assert (await world.live.run(run))["status"] == "cancelled"
