"""Items that clients of OpenAI append to conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import new_uuid
from tests.support.live_server import LiveServer, listening

Json = dict[str, Any]

CONVERSATIONS = "/openai/v1/conversations"
RESPONSES = "/openai/v1/responses"


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    tools = ("tests.support.tool_functions:deploy",)
    async with listening(tmp_path_factory.mktemp("live"), tools=tools) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    made: str = (await live.agent(tools=["deploy"]))["id"]
    live.gates.open(made)
    return made


async def begun(live: LiveServer, agent: str, *items: Json) -> str:
    body = {"metadata": {"agent_id": agent}, "items": list(items)}
    return f"{CONVERSATIONS}/{(await live.made(CONVERSATIONS, body))['id']}/items"


def said(*texts: str) -> list[Json]:
    return [{"type": "message", "role": "user", "content": text} for text in texts]


async def texts(live: LiveServer, path: str) -> list[str]:
    items = (await live.got(path, order="asc", limit=100))["data"]
    return [item["content"][0]["text"] for item in items]


async def appended(live: LiveServer, path: str, *said_: str, **headers: str) -> httpx2.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await live.client.post(path, json={"items": said(*said_)}, headers=names)


@pytest.mark.promise("P17")
@pytest.mark.parametrize("kind", ["message", "function_call_output", "function_call"])
async def test_nothing_is_appended_while_a_call_waits_and_the_answer_still_counts(
    live: LiveServer, agent: str, kind: str
) -> None:
    asked = await live.made(RESPONSES, {"model": agent, "input": "[approve=deploy] Go"})
    request = next(one for one in asked["output"] if one["type"] == "mcp_approval_request")
    call_id = request["id"].removeprefix("mcpr_")
    conversation = asked["conversation"]["id"]
    path = f"{CONVERSATIONS}/{conversation}/items"
    before = await live.got(path)
    item = {
        "message": said("And now?")[0],
        "function_call_output": {"type": kind, "call_id": call_id, "output": "FAKE"},
        "function_call": {"type": kind, "call_id": "c", "name": "look", "arguments": "{}"},
    }[kind]
    refused = await live.client.post(path, json={"items": [item]})
    assert refused.status_code == 409, refused.text
    assert refused.json()["error"]["code"] == "pending_approval"
    assert await live.got(path) == before
    answer = {"type": "mcp_approval_response", "approval_request_id": request["id"]}
    body = {"model": agent, "conversation": conversation, "input": [{**answer, "approve": True}]}
    done = await live.made(RESPONSES, body)
    call = next(one for one in done["output"] if one["type"] == "mcp_call")
    assert call["output"] not in {None, "FAKE"}


@pytest.mark.parametrize("name", [None, ["agent"], 5])
async def test_an_agent_of_a_conversation_is_named_by_a_string(
    live: LiveServer, name: object
) -> None:
    refused = await live.client.post(CONVERSATIONS, json={"metadata": {"agent_id": name}})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "metadata.agent_id"


async def test_appends_that_are_sent_again_append_once(live: LiveServer, agent: str) -> None:
    path = await begun(live, agent)
    first = await appended(live, path, "one", "two")
    again = await appended(live, path, "one", "two", x_stainless_retry_count="1")
    assert again.json() == first.json()
    assert await texts(live, path) == ["one", "two"]
    intended = await appended(live, path, "one", "two")
    assert intended.json()["data"][0]["id"] != first.json()["data"][0]["id"]
    assert await texts(live, path) == ["one", "two"] * 2
    key = new_uuid()
    named = await appended(live, path, "three", idempotency_key=key)
    live.clock.skipped_seconds += 3600
    assert (await appended(live, path, "three", idempotency_key=key)).json() == named.json()
    other = await appended(live, path, "four", idempotency_key=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "otid_conflict")
    late = await appended(live, path, "one", "two", x_stainless_retry_count="1")
    assert late.status_code == 200
    assert await texts(live, path) == ["one", "two"] * 2 + ["three", "one", "two"]


@pytest.mark.promise("P10")
async def test_a_run_that_begins_meanwhile_stands_before_or_after_all_items(
    live: LiveServer, agent: str
) -> None:
    for _ in range(4):
        path = await begun(live, agent)
        conversation = path.split("/")[-2]
        notes = [f"note {number}" for number in range(30)]
        body = {"model": agent, "conversation": conversation, "input": "Hello"}
        added, answer = await asyncio.gather(
            appended(live, path, *notes), live.client.post(RESPONSES, json=body)
        )
        assert answer.status_code == 200, answer.text
        found = await texts(live, path)
        if added.status_code == 409:
            assert len(found) == 2
            continue
        place = found.index("Hello")
        assert place in {0, len(notes)}, found
