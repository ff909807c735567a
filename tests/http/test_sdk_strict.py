"""The unmodified Python SDK, validating every answer against its types."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from letta_client import APIStatusError, AsyncLetta, ConflictError, NotFoundError

from tests.support.asgi_server import Server, strict_sdk


@pytest.fixture
async def letta(server: Server) -> AsyncIterator[AsyncLetta]:
    async with strict_sdk("http://localhost", httpx.ASGITransport(server.app)) as letta:
        yield letta


async def test_agents_and_their_blocks(letta: AsyncLetta) -> None:
    shared = await letta.blocks.create(label="shared", value="v", limit=100, metadata={"a": 1})
    agent = await letta.agents.create(
        name="strict",
        model="scripted/echo",
        model_settings={"provider_type": "openai", "temperature": 0.5},
        embedding="openai/text-embedding-3-small",
        memory_blocks=[{"label": "human", "value": "Ada"}],
        block_ids=[shared.id],
        tags=["t"],
        tool_rules=[{"type": "run_first", "tool_name": "x"}],
        compaction_settings={"mode": "all"},
        response_format={"type": "text"},
        include_base_tools=True,
    )
    assert [block.label for block in agent.blocks] == ["human", "shared"]
    everything: Any = ["agent.blocks", "agent.tags", "agent.tools", "agent.pending_approval"]
    assert (await letta.agents.retrieve(agent.id, include=everything)).name == "strict"
    assert [one.id async for one in letta.agents.list(limit=1, order="asc")] == [agent.id]
    changed = await letta.agents.update(agent.id, description="d", context_window_limit=1000)
    assert changed.llm_config.context_window == 1000
    blocks = letta.agents.blocks
    assert [block.label async for block in blocks.list(agent.id)] == ["shared", "human"]
    assert (await blocks.retrieve("human", agent_id=agent.id)).value == "Ada"
    assert (await blocks.update("human", agent_id=agent.id, value="Bob")).value == "Bob"
    assert len((await blocks.detach(shared.id, agent_id=agent.id)).blocks) == 1
    assert len((await blocks.attach(shared.id, agent_id=agent.id)).blocks) == 2
    reset = await letta.agents.messages.reset(agent.id)
    assert reset is not None
    assert len(reset.message_ids or []) == 1
    await letta.agents.delete(agent.id)
    with pytest.raises(NotFoundError):
        await letta.agents.retrieve(agent.id)


async def test_blocks(letta: AsyncLetta) -> None:
    made = [await letta.blocks.create(label=f"b{n}", value="v") for n in range(3)]
    assert [one.id async for one in letta.blocks.list(limit=2)] == [one.id for one in made]
    assert (await letta.blocks.update(made[0].id, value="w")).value == "w"
    assert (await letta.blocks.retrieve(made[0].id)).value == "w"
    await letta.blocks.delete(made[0].id)
    assert len([one async for one in letta.blocks.list()]) == 2


async def test_conversations_and_messages(server: Server, letta: AsyncLetta) -> None:
    agent = await letta.agents.create()
    made = await letta.conversations.create(
        agent_id=agent.id,
        summary="s",
        description="d",
        model="scripted/echo",
        model_settings={"provider_type": "anthropic", "max_output_tokens": 5},
        context_window_limit=5,
        hidden=False,
    )
    await server.send(made.id, "hi [think=1][tool=clock]")
    assert (await letta.conversations.retrieve(made.id)).description == "d"
    archived = await letta.conversations.update(made.id, archived=True)
    assert archived.archived_at is not None
    for status in ("unarchived", "archived", "all"):
        listed: Any = await letta.conversations.list(agent_id=agent.id, archive_status=status)
        assert len(listed) == (status != "unarchived")
    fork = await letta.conversations.fork(made.id, hidden=True)
    assert fork.agent_id == agent.id
    every = [one async for one in letta.conversations.messages.list(made.id, order="asc", limit=2)]
    kinds = [one.message_type for one in every]
    assert kinds[:2] == ["system_message", "user_message"]
    assert {"reasoning_message", "tool_call_message", "tool_return_message"} <= set(kinds)
    of_agent = [one async for one in letta.agents.messages.list(agent.id, order="asc")]
    assert len(of_agent) == len(every) + 2  # with the first messages of two other threads
    in_all = await letta.messages.list(order="asc", limit=1000)
    assert {one.id for one in every} <= {one.id for one in in_all}
    of_one = await letta.messages.list(conversation_id=made.id, order="asc")
    assert [one.id for one in of_one] == [one.id for one in every]
    assert (await letta.messages.retrieve(every[0].id))[0].id == every[0].id
    await letta.conversations.delete(made.id)
    with pytest.raises(NotFoundError):
        await letta.conversations.retrieve(made.id)


async def test_a_turn_with_a_client_tool(server: Server, letta: AsyncLetta) -> None:
    agent = await letta.agents.create()
    ask = "[client_tool=look,fetch][chunks=0]"
    tools: Any = [{"name": "look"}, {"name": "fetch"}]
    asked = await letta.agents.messages.create(agent.id, input=ask, client_tools=tools)
    assert asked.stop_reason.stop_reason == "requires_approval"
    [request] = asked.messages
    assert request.message_type == "approval_request_message"
    waiting = await letta.agents.retrieve(agent.id, include=["agent.pending_approval"])
    assert waiting.pending_approval is not None
    assert waiting.pending_approval.id == request.id
    assert isinstance(request.tool_calls, list)
    look, fetch = (call.tool_call_id for call in request.tool_calls)
    decisions: Any = [
        {"type": "tool", "tool_call_id": look, "tool_return": "x", "status": "success"},
        {"type": "approval", "tool_call_id": fetch, "approve": False, "reason": "no"},
    ]
    answer: Any = {"type": "approval", "approvals": decisions}
    done = await letta.agents.messages.create(agent.id, messages=[answer])
    assert done.stop_reason.stop_reason == "end_turn"
    every = [one async for one in letta.agents.messages.list(agent.id, order="asc")]
    assert [one.message_type for one in every][-4:] == [
        "approval_request_message",
        "approval_response_message",
        "tool_return_message",
        "assistant_message",
    ]


async def test_runs(server: Server, letta: AsyncLetta) -> None:
    agent = await letta.agents.create()
    for text in ("one", "two [think=2]", "[fail=1]"):
        body = {"input": text, "streaming": False}
        await server.client.post(f"/v1/conversations/{agent.id}/messages", json=body)
    runs = [one async for one in letta.runs.list(agent_id=agent.id, limit=1)]
    assert len(runs) == 3
    assert {one.status for one in runs} == {"completed", "failed"}
    for run in runs:
        assert (await letta.runs.retrieve(run.id)).id == run.id
        assert (await letta.runs.usage.retrieve(run.id)).total_tokens is not None
        assert [one async for one in letta.runs.messages.list(run.id, limit=1)]
        assert all([one.run_id == run.id async for one in letta.runs.steps.list(run.id)])


async def test_models_and_health(letta: AsyncLetta) -> None:
    assert (await letta.health()).status == "ok"
    assert {model.handle for model in await letta.models.list()} == {
        "scripted/echo",
        "scripted/slow",
    }
    assert await letta.models.embeddings.list() == []


async def test_the_sdk_does_not_retry_a_501(letta: AsyncLetta) -> None:
    with pytest.raises(APIStatusError) as refused:
        await letta.archives.create(name="a")
    assert refused.value.status_code == 501
    assert "memory blocks" in str(refused.value.body)
    assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_a_conflict_that_waiting_does_not_solve_is_not_tried_again(
    letta: AsyncLetta,
) -> None:
    block = await letta.blocks.create(label="human", value="")
    agent = await letta.agents.create(memory_blocks=[{"label": "human", "value": ""}])
    with pytest.raises(ConflictError) as refused:
        await letta.agents.blocks.attach(block.id, agent_id=agent.id)
    assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"


async def test_contexts(server: Server, letta: AsyncLetta) -> None:
    """Compacting and recompiling, by agent and by conversation, and the lists afterwards."""
    agent = await letta.agents.create(memory_blocks=[{"label": "human", "value": "Ada"}])
    own: Any = {"isolated_block_labels": ["human"]}
    made = await letta.conversations.create(agent_id=agent.id, extra_body=own)
    settings: Any = {"mode": "all", "model": "scripted/echo", "clip_chars": 100}
    for thread in (made.id, agent.id):
        await server.send(thread, "[chunks=2]")
        await server.send(thread, "many words " * 30)
    compacted = await letta.conversations.messages.compact(made.id, compaction_settings=settings)
    assert (compacted.summary, compacted.num_messages_after) == ("t0 t1", 3)
    direct = await letta.agents.messages.compact(agent.id, compaction_settings=settings)
    assert direct.num_messages_before == 5
    [summary] = [
        one
        async for one in letta.conversations.messages.list(made.id, order="asc")
        if one.message_type == "summary_message"
    ]
    assert summary.compaction_stats is not None
    assert summary.compaction_stats.trigger == "requested"
    compiled = await letta.conversations.recompile(made.id, dry_run=True)
    assert made.id in str(compiled)
    assert "Ada" in str(await letta.agents.recompile(agent.id, update_timestamp=True))


async def test_images_and_reasoning_settings(letta: AsyncLetta) -> None:
    config: Any = {
        "model": "echo",
        "model_endpoint_type": "openai",
        "handle": "scripted/echo",
        "context_window": 4000,
        "enable_reasoner": True,
        "max_reasoning_tokens": 2000,
        "reasoning_effort": "low",
    }
    agent = await letta.agents.create(llm_config=config)
    assert agent.llm_config.max_reasoning_tokens == 2000
    pixel = {"type": "base64", "media_type": "image/gif", "data": "aGk=", "detail": "low"}
    content: Any = [{"type": "text", "text": "look"}, {"type": "image", "source": pixel}]
    await letta.agents.messages.create(agent.id, messages=[{"role": "user", "content": content}])
    listed = [one async for one in letta.agents.messages.list(agent.id, order="asc")]
    assert [one.message_type for one in listed][1] == "user_message"
