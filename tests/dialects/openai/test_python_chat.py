"""Chat Completions through OpenAI's Python client: streams, helpers, tools, breaks and retries."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageParam,
)

from tests.dialects.openai.clients import Cutting, openai_client
from tests.support.live_server import WAIT_SECONDS, LiveServer

LOOK: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object"}},
}


def asked(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def read(stream: AsyncStream[ChatCompletionChunk], into: list[ChatCompletionChunk]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in stream:
            into.append(chunk)  # noqa: PERF401  those before the break count too


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices)


async def test_an_answer_is_the_same_whole_streamed_and_through_the_helper(
    agent: str, client: AsyncOpenAI
) -> None:
    create = client.chat.completions.create
    messages = asked("[think=1][tool=add] Hi there")
    whole = await create(model=agent, messages=messages)
    assert whole.choices[0].message.content
    chunks: list[ChatCompletionChunk] = []
    options: Any = {"include_usage": True}
    stream = await create(model=agent, messages=messages, stream=True, stream_options=options)
    await read(stream, chunks)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    helper = client.chat.completions.stream(model=agent, messages=messages)
    async with helper as events:
        final = await events.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


async def test_a_stream_that_breaks_at_any_frame_raises_and_its_answer_is_kept_whole(
    live: LiveServer, agent: str, client: AsyncOpenAI, network: Cutting
) -> None:
    whole_length, cut = 2, 0
    while cut < whole_length:
        headers = {"X-Reattach-Chat-Key": f"cut {cut}"}
        network.frames = cut + 1
        answer = await client.chat.completions.with_raw_response.create(
            model=agent, messages=asked("[chunks=3]"), stream=True, extra_headers=headers
        )
        chunks: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIConnectionError):
            await read(answer.parse(), chunks)
        run = await live.ended(answer.headers["x-run-id"])
        assert run["status"] == "completed"
        kept = await live.contents(answer.headers["x-conversation-id"])
        assert kept == [("user_message", "[chunks=3]"), ("assistant_message", "t0 t1 t2 ")]
        whole_length, cut = 5, cut + 1  # The role, three texts and the finish.
    assert len(await live.run_ids(agent_id=agent)) == whole_length


async def test_a_helper_never_takes_a_broken_stream_for_an_answer(
    agent: str, client: AsyncOpenAI, network: Cutting
) -> None:
    network.frames = 3
    with pytest.raises(openai.APIConnectionError):
        async with client.chat.completions.stream(
            model=agent, messages=asked("[chunks=3]")
        ) as events:
            await events.get_final_completion()


@pytest.mark.promise("P9")
@pytest.mark.parametrize("streams", [False, True])
async def test_a_request_that_the_client_retries_starts_one_run(
    live: LiveServer, agent: str, network: Cutting, streams: bool
) -> None:
    async with openai_client(live.url, network, retries=2) as client:
        network.loses_head = True
        create = client.chat.completions.create
        if streams:
            chunks: list[ChatCompletionChunk] = []
            await read(await create(model=agent, messages=asked("Hi"), stream=True), chunks)
            assert text_of(chunks) == "Hi"
        else:
            answer = await create(model=agent, messages=asked("Hi"))
            assert answer.choices[0].message.content == "Hi"
    assert network.retry_counts == ["0", "1"]
    assert len(await live.run_ids(agent_id=agent)) == 1


@pytest.mark.parametrize("headers", [{}, {"X-Reattach-Chat-Key": "tools"}], ids=["", "named"])
async def test_tools_of_the_client_make_a_round_trip(
    agent: str, client: AsyncOpenAI, headers: dict[str, str]
) -> None:
    messages = asked('[client_tool=look,look][arguments={"at": "sea"}] Where?')
    options: Any = {"model": agent, "tools": [LOOK], "extra_headers": headers}
    first = await client.chat.completions.create(messages=messages, **options)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    calls = message.tool_calls or []
    assert len(calls) == 2
    messages.append(message.to_dict())
    for number, call in enumerate(calls):
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"at": "sea"}
        returned = f"calm {number}"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": returned})
    second = await client.chat.completions.create(messages=messages, **options)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "look success: calm 0\nlook success: calm 1\n"


async def test_failures_are_the_exceptions_of_the_client(
    live: LiveServer, agent: str, network: Cutting
) -> None:
    async with openai_client(live.url, network, retries=2) as client:
        create = client.chat.completions.create
        stream = await create(model=agent, messages=asked("[fail=2]"), stream=True)
        chunks: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError, match="failed as the script says"):
            await read(stream, chunks)
        assert text_of(chunks) == "t0 t1 "
        with pytest.raises(openai.InternalServerError, match="failed as the script says"):
            await create(model=agent, messages=asked("[fail=2]"))
        with pytest.raises(openai.NotFoundError, match="GET /openai/v1/models"):
            await create(model="nobody", messages=asked("Hi"))
        with pytest.raises(openai.UnprocessableEntityError):
            await create(model=agent, messages=[])
    assert set(network.retry_counts) == {"0"}
