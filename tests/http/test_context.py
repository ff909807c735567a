"""A conversation's context, on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.domain.ids import TenantId
from tests.support.live_server import WAIT_SECONDS, LiveServer, kinds, listening, text


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


async def new_threads(live: LiveServer, **body: Any) -> tuple[str, str]:
    agent = await live.agent(**{"system": "Be brief.", **body})
    live.gates.open(agent["id"])
    return agent["id"], (await live.conversation(agent["id"]))["id"]


async def filled(live: LiveServer, thread: str, **body: Any) -> None:
    """Two turns, whose summary by the scripted model is two words."""
    await live.send(thread, "[chunks=2]", **body)
    await live.send(thread, "many words " * 30, **body)


async def history_of(live: LiveServer, thread: str, **body: Any) -> str:
    answer = await live.send(thread, "[history]", **body)
    return "".join(item["content"] for item in answer["messages"])


# Compacting.


@pytest.mark.promise("P18")
@pytest.mark.parametrize("named", [True, False])
async def test_a_conversation_is_compacted_on_request(live: LiveServer, named: bool) -> None:
    agent, thread = await new_threads(live)
    if not named:
        thread = "default"
    await filled(live, thread, agent_id=agent)
    where = f"/v1/conversations/{thread}"
    before = await live.got(f"{where}/messages", agent_id=agent, order="asc")
    path = f"{where}/compact" if named else f"/v1/agents/{agent}/summarize"
    body = {"compaction_settings": {"mode": "all"}}
    made = await live.made(path, body)
    assert made == {"summary": "t0 t1", "num_messages_before": 5, "num_messages_after": 3}
    after = await live.got(f"{where}/messages", agent_id=agent, order="asc")
    assert after[:-1] == before
    summary = after[-1]
    assert (summary["message_type"], summary["summary"]) == ("summary_message", "t0 t1")
    assert summary["compaction_stats"]["trigger"] == "requested"
    kept = next(item for item in before if item["id"] == summary["kept_from_message_id"])
    assert kept["message_type"] == "assistant_message"
    history = await history_of(live, thread, agent_id=agent)
    assert "t0 t1" in history
    assert "user: many" not in history
    assert "assistant: many words" in history


async def test_the_default_conversation_is_named_in_the_body(live: LiveServer) -> None:
    agent, _ = await new_threads(live)
    await filled(live, "default", agent_id=agent)
    body = {"agent_id": agent, "compaction_settings": {"mode": "all"}}
    assert (await live.made("/v1/conversations/default/compact", body))["summary"] == "t0 t1"
    state = await live.got(f"/v1/agents/{agent}")
    assert len(state["message_ids"]) == 3


async def refused(live: LiveServer, path: str, body: Any = None) -> tuple[int, str]:
    response = await live.client.post(path, json=body)
    error = response.json()
    return response.status_code, error["code"]


async def test_a_conversation_that_cannot_be_compacted_does_not_change(live: LiveServer) -> None:
    _, thread = await new_threads(live)
    path = f"/v1/conversations/{thread}/compact"
    assert await refused(live, path) == (400, "invalid_argument")
    await live.send(thread, "one")
    await live.send(thread, "two")
    assert await refused(live, path) == (400, "invalid_argument")
    unknown = {"compaction_settings": {"model": "openai/none"}}
    assert await refused(live, path, unknown) == (404, "not_found")
    kept = [kind for kind, _ in await live.contents(thread)]
    assert "summary_message" not in kept


async def test_a_failed_summary_reports_the_error_of_its_model(live: LiveServer) -> None:
    _, thread = await new_threads(live)
    await live.streamed(f"/v1/conversations/{thread}/messages", {"input": "[fail=1] " + "x " * 99})
    await live.send(thread, "more")
    path = f"/v1/conversations/{thread}/compact"
    assert await refused(live, path) == (500, "llm_error")
    kept = [kind for kind, _ in await live.contents(thread)]
    assert "summary_message" not in kept


async def test_a_conversation_is_not_compacted_while_a_run_of_it_is_active(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    await filled(live, thread)
    run = await live.held_run(agent, thread, "wait", after=0)
    path = f"/v1/conversations/{thread}/compact"
    assert await refused(live, path) == (409, "conversation_busy")
    await live.ended(run)


@pytest.mark.promise("P18")
async def test_calls_that_wait_for_an_approval_stay_in_context(live: LiveServer) -> None:
    _, thread = await new_threads(live)
    await filled(live, thread)
    send = f"/v1/conversations/{thread}/messages"
    asked = await live.streamed(send, {"input": "[approve=deploy]"})
    assert "approval_request_message" in kinds(asked)
    await live.made(f"/v1/conversations/{thread}/compact", {"compaction_settings": {"mode": "all"}})
    request = next(f.event for f in asked if f.kind == "approval_request_message")
    call_id = request["tool_calls"][0]["tool_call_id"]
    approval = {"type": "approval", "tool_call_id": call_id, "approve": True}
    answer = await live.streamed(
        send, {"messages": [{"type": "approval", "approvals": [approval]}]}
    )
    assert "tool_return_message" in kinds(answer)
    assert text(answer) == "deploy success: deploy returned 1\n"


async def test_a_compaction_continues_when_its_client_disconnects(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    await filled(live, thread)
    live.gates.hold(agent)
    path = f"/v1/conversations/{thread}/compact"
    asking = asyncio.create_task(live.client.post(path))
    await live.gates.reached(agent, 0)
    asking.cancel()
    await asyncio.wait({asking})
    before = [kind for kind, _ in await live.contents(thread)]
    assert "summary_message" not in before
    live.gates.open(agent)
    async with asyncio.timeout(WAIT_SECONDS):
        while len(await live.contents(thread)) == len(before):
            await asyncio.sleep(0.01)
    assert [kind for kind, _ in await live.contents(thread)] == [*before, "summary_message"]


# The system prompt.


async def test_the_system_prompt_names_the_agent_and_the_conversation(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    for named, conversation in ((thread, thread), ("default", "default")):
        answer = await live.send(named, "[system]", agent_id=agent)
        prompt = answer["messages"][0]["content"]
        assert f"- AGENT_ID: {agent}\n- CONVERSATION_ID: {conversation}\n" in prompt


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("named", [True, False])
async def test_a_system_prompt_is_compiled_anew(
    live: LiveServer, dry_run: bool, named: bool
) -> None:
    block = {"label": "human", "value": "Her name is Ada."}
    agent, thread = await new_threads(live, memory_blocks=[block])
    response = await live.client.patch(
        f"/v1/agents/{agent}/core-memory/blocks/human", json={"value": "Her name is Grace."}
    )
    assert response.status_code == 200
    where = f"/v1/conversations/{thread}" if named else f"/v1/agents/{agent}"
    response = await live.client.post(f"{where}/recompile", params={"dry_run": dry_run})
    assert response.status_code == 200, response.text
    compiled = response.json()
    assert "Grace" in compiled
    path = f"/v1/conversations/{thread if named else 'default'}/messages"
    [first] = await live.got(path, agent_id=agent)
    assert (first["content"] == compiled) is not dry_run
    assert ("Ada" in first["content"]) is dry_run


# Blocks of a conversation.


async def prompt_of(live: LiveServer, thread: str, agent: str) -> str:
    answer = await live.send(thread, "[system]", agent_id=agent)
    return str(answer["messages"][0]["content"])


async def test_isolated_blocks_are_copies_that_only_their_conversation_has(
    live: LiveServer,
) -> None:
    blocks = [{"label": "human", "value": "Ada"}, {"label": "persona", "value": "Kind"}]
    agent, shared = await new_threads(live, memory_blocks=blocks)
    made = await live.conversation(agent, isolated_block_labels=["human", "human"])
    [own] = made["isolated_block_ids"]
    changed = await live.client.patch(f"/v1/blocks/{own}", json={"value": "Grace"})
    assert changed.status_code == 200, changed.text
    response = await live.client.patch(
        f"/v1/agents/{agent}/core-memory/blocks/persona", json={"value": "Stern"}
    )
    assert response.status_code == 200, response.text
    isolated = await prompt_of(live, made["id"], agent)
    assert ("Grace" in isolated, "Ada" in isolated, "Stern" in isolated) == (True, False, True)
    for thread in (shared, "default"):
        prompt = await prompt_of(live, thread, agent)
        assert ("Grace" in prompt, "Ada" in prompt, "Stern" in prompt) == (False, True, True)
    again = await live.got(f"/v1/conversations/{made['id']}")
    assert again["isolated_block_ids"] == [own]
    listed = await live.got("/v1/conversations/", agent_id=agent)
    assert {one["id"]: one["isolated_block_ids"] for one in listed}[made["id"]] == [own]


async def test_a_fork_has_copies_of_isolated_blocks(live: LiveServer) -> None:
    agent, _ = await new_threads(live, memory_blocks=[{"label": "human", "value": "Ada"}])
    made = await live.conversation(agent, isolated_block_labels=["human"])
    fork = await live.made(f"/v1/conversations/{made['id']}/fork", None)
    [source], [copy] = made["isolated_block_ids"], fork["isolated_block_ids"]
    assert source != copy
    await live.client.patch(f"/v1/blocks/{source}", json={"value": "Grace"})
    assert "Ada" in await prompt_of(live, fork["id"], agent)


async def test_a_label_that_the_agent_does_not_have_makes_no_conversation(
    live: LiveServer,
) -> None:
    agent, _ = await new_threads(live)
    before = live.rows()
    path = f"/v1/conversations/?agent_id={agent}"
    assert await refused(live, path, {"isolated_block_labels": ["human"]}) == (
        400,
        "invalid_argument",
    )
    assert live.rows() == before


@pytest.mark.promise("P11")
async def test_strangers_can_neither_compact_nor_recompile(tmp_path: Any) -> None:
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        await filled(live, thread)
        stranger = TenantId("org-11111111-1111-4111-8111-111111111111")
        async with await live.as_tenant(stranger) as client:
            for path in (
                f"/v1/conversations/{thread}/compact",
                f"/v1/conversations/{thread}/recompile",
                f"/v1/agents/{agent}/summarize",
                f"/v1/agents/{agent}/recompile",
            ):
                assert (await client.post(path)).status_code == 404
