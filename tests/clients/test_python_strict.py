"""The Python SDK with its own strict validation of every answer, on all that is offered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from letta_client import AsyncLetta, Letta
from letta_client.types.agents import ApprovalRequestMessage

from tests.support.python_sdk import new_otid
from tests.support.threads import WAIT_SECONDS, Thread, Threads


@pytest.fixture(scope="module")
def sdk(threads: Threads) -> Iterator[Letta]:
    with Letta(
        base_url=str(threads.raw.base_url),
        api_key="none needed",
        max_retries=0,
        timeout=WAIT_SECONDS,
        _strict_response_validation=True,
    ) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def talked(sdk: Letta, threads: Threads) -> Thread:
    """A conversation with all kinds of items: one run went well, one failed."""
    thread = threads.conversation()
    for text in ("[think=2][tool=search][chunks=3]", "[chunks=3][fail=2]"):
        message = thread.message(text) | {"otid": new_otid()}
        thread.post("messages", {"messages": [message], "background": True})
    return thread


def test_agents_pass_strict_validation(sdk: Letta) -> None:
    agent = sdk.agents.create(
        name="strict",
        model="scripted/echo",
        description="d",
        system="s",
        memory_blocks=[{"label": "human", "value": "v", "description": "d", "limit": 100}],
        tags=["t"],
        metadata={"k": 1},
        context_window_limit=1000,
        timezone="Europe/Vienna",
    )
    assert sdk.agents.retrieve(agent.id, include=["agent.blocks", "agent.tags"]).tags == ["t"]
    assert sdk.agents.update(agent.id, name="stricter").name == "stricter"
    assert [one.id for one in sdk.agents.list(name="stricter", limit=10)] == [agent.id]
    assert [b.value for b in sdk.agents.blocks.list(agent.id)] == ["v"]
    assert sdk.agents.blocks.retrieve("human", agent_id=agent.id).value == "v"
    assert sdk.agents.blocks.update("human", agent_id=agent.id, value="w").value == "w"
    block = sdk.blocks.create(label="persona", value="p")
    sdk.agents.blocks.attach(block.id, agent_id=agent.id)
    sdk.agents.blocks.detach(block.id, agent_id=agent.id)
    answer = sdk.agents.messages.create(agent.id, input="[think=1][tool=search]")
    assert answer.stop_reason.stop_reason == "end_turn"
    assert len(list(sdk.agents.messages.list(agent.id, order="asc"))) == 2 + len(answer.messages)
    sdk.agents.messages.reset(agent.id)
    sdk.agents.delete(agent.id)


def test_blocks_pass_strict_validation(sdk: Letta) -> None:
    block = sdk.blocks.create(label="strict", value="v", description="d", metadata={"k": 1})
    assert sdk.blocks.retrieve(block.id).value == "v"
    assert sdk.blocks.update(block.id, value="w").value == "w"
    assert block.id in [one.id for one in sdk.blocks.list(label="strict")]
    sdk.blocks.delete(block.id)


def test_conversations_pass_strict_validation(sdk: Letta, talked: Thread) -> None:
    made = sdk.conversations.create(
        agent_id=talked.agent_id, summary="s", description="d", context_window_limit=1000
    )
    assert sdk.conversations.retrieve(made.id).summary == "s"
    assert sdk.conversations.update(made.id, archived=True).archived is True
    listed = sdk.conversations.list(agent_id=talked.agent_id, archive_status="all")
    assert made.id in [one.id for one in listed]
    fork = sdk.conversations.fork(talked.path_id)
    assert len(list(sdk.conversations.messages.list(fork.id, order="asc"))) > 5
    sdk.conversations.delete(made.id)


def test_messages_pass_strict_validation(sdk: Letta, talked: Thread) -> None:
    items = list(sdk.conversations.messages.list(talked.path_id, order="asc"))
    assert {item.message_type for item in items} == {
        "system_message",
        "user_message",
        "reasoning_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    }
    assert len(sdk.messages.retrieve(items[-1].id)) >= 1


def test_runs_with_their_messages_usage_and_steps_pass_strict_validation(
    sdk: Letta, talked: Thread
) -> None:
    runs = list(sdk.runs.list(conversation_id=talked.conversation_id, order="asc"))
    assert [run.status for run in runs] == ["completed", "failed"]
    for run in runs:
        assert sdk.runs.retrieve(run.id).id == run.id
        assert sdk.runs.usage.retrieve(run.id).total_tokens is not None
        assert len(list(sdk.runs.steps.list(run.id))) >= 1
        assert len(list(sdk.runs.messages.list(run.id))) >= 2


def test_models_and_health_pass_strict_validation(sdk: Letta) -> None:
    assert "scripted/echo" in [model.handle for model in sdk.models.list()]
    assert isinstance(sdk.models.embeddings.list(), list)
    assert sdk.health().status == "ok"


def chunks_of(stream: Any) -> list[str]:
    """Types of the chunks of a strictly validated stream."""
    return [chunk.message_type for chunk in stream]


@pytest.mark.parametrize("stream_tokens", [False, True])
def test_the_chunks_of_streams_pass_strict_validation(
    stream_tokens: bool, sdk: Letta, talked: Thread
) -> None:
    message = talked.message("[think=2][tool=search][chunks=3]") | {"otid": new_otid()}
    sent = chunks_of(
        sdk.conversations.messages.create(
            talked.path_id,
            messages=[message],
            stream_tokens=stream_tokens,
            background=True,
        )
    )
    assert {*sent} == {
        "ping",
        "tool_call_message",
        "tool_return_message",
        "reasoning_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    }
    resumed = sdk.conversations.messages.stream(talked.path_id, otid=message["otid"])
    assert chunks_of(resumed) == sent


def test_the_chunks_of_a_waiting_call_and_of_its_answer_pass_strict_validation(
    sdk: Letta, threads: Threads
) -> None:
    thread = threads.conversation()
    for stream_tokens in (False, True):
        asked = sdk.conversations.messages.create(
            thread.path_id,
            messages=[{"role": "user", "content": "[client_tool=look][chunks=1]"}],
            client_tools=[{"name": "look", "parameters": {"type": "object"}}],
            stream_tokens=stream_tokens,
        )
        calls = [chunk for chunk in asked if isinstance(chunk, ApprovalRequestMessage)]
        call_id = calls[0].tool_call.tool_call_id
        assert call_id is not None
        answered = sdk.conversations.messages.create(
            thread.path_id,
            messages=[
                {
                    "type": "approval",
                    "approvals": [
                        {"type": "approval", "tool_call_id": call_id, "approve": False},
                    ],
                }
            ],
            stream_tokens=stream_tokens,
        )
        assert "assistant_message" in chunks_of(answered)
    items = sdk.conversations.messages.list(thread.path_id, order="asc")
    assert "approval_response_message" in [item.message_type for item in items]


def test_async_sends_and_the_streams_of_runs_pass_strict_validation(
    sdk: Letta, threads: Threads
) -> None:
    agent_id = threads.default_thread().agent_id
    run = sdk.agents.messages.create_async(agent_id, input="[think=1][chunks=3]")
    assert run.background is True
    seen = chunks_of(sdk.runs.messages.stream(run.id))
    assert seen[-2:] == ["stop_reason", "usage_statistics"]
    rest = sdk.runs.messages.stream(run.id, starting_after=2, batch_size=1, include_pings=False)
    assert chunks_of(rest) == seen[2:]


def test_the_deprecated_stream_of_an_agent_passes_strict_validation(
    sdk: Letta, threads: Threads
) -> None:
    agent_id = threads.default_thread().agent_id
    message: Any = {"role": "user", "content": "[chunks=2]"}
    with pytest.deprecated_call():
        chunks = sdk.agents.messages.stream(agent_id, messages=[message])  # type: ignore[deprecated]
    assert "assistant_message" in chunks_of(chunks)


def test_cancel_answers_pass_strict_validation(sdk: Letta, threads: Threads) -> None:
    thread = threads.default_thread()
    cancels: list[Callable[[str], object]] = [
        lambda run_id: sdk.conversations.cancel("default", agent_id=thread.agent_id),
        lambda run_id: sdk.agents.messages.cancel(thread.agent_id),
        lambda run_id: sdk.agents.messages.cancel(thread.agent_id, run_ids=[run_id]),
    ]
    for cancel in cancels:
        stream = sdk.conversations.messages.create(
            "default", agent_id=thread.agent_id, input="[hang=0]", background=True
        )
        run_id = stream.response.headers["x-run-id"]
        assert cancel(run_id) == {run_id: "cancelled"}
        assert chunks_of(stream) == ["ping", "stop_reason", "usage_statistics"]


async def test_the_asynchronous_sdk_validates_the_same(talked: Thread) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        AsyncLetta(
            base_url=talked.url,
            api_key="none needed",
            max_retries=0,
            _strict_response_validation=True,
            http_client=httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(verify=False)),
        ) as sdk,
    ):
        stream = await sdk.conversations.messages.create(
            talked.path_id, input="[think=1][chunks=3]", stream_tokens=True
        )
        types = [chunk.message_type async for chunk in stream]
        assert types[0] == "ping"
        assert types[-2:] == ["stop_reason", "usage_statistics"]
        runs = sdk.runs.list(conversation_id=talked.conversation_id)
        assert [run.id async for run in runs]
        assert (await sdk.agents.retrieve(talked.agent_id)).id == talked.agent_id
