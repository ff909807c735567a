"""OpenAI's Python client: streams that break at every event, retries, helpers, tools."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.responses import FunctionToolParam, ResponseStreamEvent

from tests.dialects.openai.clients import Cutting, openai_client
from tests.support.live_server import WAIT_SECONDS, LiveServer

SENT = "[think=1][tool=add] Hi"
LOOK: FunctionToolParam = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object"},
    "strict": False,
}

Json = dict[str, Any]


async def read(stream: AsyncStream[ResponseStreamEvent], into: list[Json]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        async for event in stream:
            into.append(event.to_dict())  # noqa: PERF401  those before the break count too


async def test_a_stream_that_breaks_at_any_event_is_resumed_without_loss_or_repetition(
    live: LiveServer, agent: str, client: AsyncOpenAI, network: Cutting
) -> None:
    whole_length, cut = 2, 0
    while cut < whole_length:
        joined: list[Json] = []
        network.frames = cut + 1
        stream = await client.responses.create(
            model=agent, input=SENT, background=True, stream=True
        )
        with pytest.raises(openai.APIConnectionError):
            await read(stream, joined)
        assert len(joined) == cut + 1
        response_id = joined[0]["response"]["id"]
        rest = await client.responses.retrieve(
            response_id, stream=True, starting_after=joined[-1]["sequence_number"]
        )
        await read(rest, joined)
        whole: list[Json] = []
        await read(await client.responses.retrieve(response_id, stream=True), whole)
        assert joined == whole
        whole_length, cut = len(whole), cut + 1
    assert whole_length > 15
    assert len(await live.run_ids(agent_id=agent)) == whole_length


async def test_the_helper_follows_a_response_by_its_id_to_the_same_end(
    agent: str, client: AsyncOpenAI
) -> None:
    async with client.responses.stream(model=agent, input=SENT) as stream:
        first = await stream.get_final_response()
    async with client.responses.stream(response_id=first.id, starting_after=5) as again:
        numbers = [event.sequence_number async for event in again]
        assert numbers == list(range(6, 6 + len(numbers)))
        final = await again.get_final_response()
    assert final.to_dict() == first.to_dict()
    assert first.output_text
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text


async def test_a_response_is_cancelled_once_however_often_it_is_asked_for(
    live: LiveServer, client: AsyncOpenAI
) -> None:
    agent = (await live.agent())["id"]
    live.gates.hold(agent, 1)
    response = await client.responses.create(model=agent, input="[chunks=3]", background=True)
    assert response.status == "queued"
    await live.gates.reached(agent, 1)
    first = await client.responses.cancel(response.id)
    assert first.status == "cancelled"
    assert await client.responses.cancel(response.id) == first


async def test_racing_requests_with_one_idempotency_key_are_one_response(
    live: LiveServer, agent: str, client: AsyncOpenAI
) -> None:
    headers = {"Idempotency-Key": "key-1"}
    responses = await asyncio.gather(
        *(client.responses.create(model=agent, input="Hi", extra_headers=headers) for _ in range(5))
    )
    assert len({response.id for response in responses}) == 1
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_a_request_that_the_client_retries_starts_one_response(
    live: LiveServer, agent: str, network: Cutting, streams: bool
) -> None:
    async with openai_client(live.url, network, retries=2) as client:
        network.loses_head = True
        if streams:
            events: list[Json] = []
            stream = await client.responses.create(model=agent, input="Hi", stream=True)
            await read(stream, events)
            assert events[-1]["type"] == "response.completed"
        else:
            assert (await client.responses.create(model=agent, input="Hi")).output_text
    assert network.retry_counts == ["0", "1"]
    assert len(await live.run_ids(agent_id=agent)) == 1


async def test_a_tool_of_the_client_makes_a_round_trip(agent: str, client: AsyncOpenAI) -> None:
    asked = await client.responses.create(
        model=agent, input="[client_tool=look] Where?", tools=[LOOK]
    )
    call = asked.output[-1]
    assert call.type == "function_call"
    answered = await client.responses.create(
        model=agent,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "Marstal"}],
        previous_response_id=asked.id,
        tools=[LOOK],
    )
    assert "Marstal" in answered.output_text
    items = await client.responses.input_items.list(answered.id)
    assert [item.type async for item in items] == ["function_call_output"]


async def test_an_approval_makes_a_round_trip(agent: str, client: AsyncOpenAI) -> None:
    asked = await client.responses.create(model=agent, input="[tool=deploy] Go")
    request = asked.output[-1]
    assert request.type == "mcp_approval_request"
    done = await client.responses.create(
        model=agent,
        previous_response_id=asked.id,
        input=[
            {
                "type": "mcp_approval_response",
                "approval_request_id": request.id,
                "approve": True,
            }
        ],
    )
    call = done.output[0]
    assert call.type == "mcp_call"
    assert (call.output, call.approval_request_id) == ("deployed 1", request.id)


async def test_conversations_and_their_items_are_readable_by_the_client(
    agent: str, client: AsyncOpenAI
) -> None:
    made = await client.conversations.create(
        metadata={"agent_id": agent}, items=[{"role": "user", "content": "Before"}]
    )
    response = await client.responses.create(model=agent, input=SENT, conversation=made.id)
    assert response.conversation is not None
    assert response.conversation.id == made.id
    items = [
        item.type
        async for item in await client.conversations.items.list(made.id, order="asc", limit=1)
    ]
    assert items == ["message", "message", *(item.type for item in response.output)]
    assert (await client.conversations.delete(made.id)).deleted


async def test_failures_are_the_exceptions_of_the_client(agent: str, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="GET /openai/v1/models"):
        await client.responses.create(model="nobody", input="Hi")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve("resp_123e4567e89b42d38456426614174000")
    with pytest.raises(openai.UnprocessableEntityError):
        await client.responses.create(model=agent, input=[])
    failed = await client.responses.create(model=agent, input="[chunks=2][fail=1] Hi")
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "server_error"


async def test_a_deleted_response_is_gone(agent: str, client: AsyncOpenAI) -> None:
    response = await client.responses.create(model=agent, input="Hi")
    await client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
