"""Agents and conversations that sends find without a query, while they cannot have changed."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import DEFAULT_TENANT, AgentId, ConversationId, TenantId
from reattach.records.agents import Agents
from reattach.records.base import Agent, Conversation
from reattach.records.conversations import Conversations
from reattach.records.known import addressees
from reattach.server import datadir
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import (
    WAIT_SECONDS,
    LiveServer,
    listening,
    message_body,
    new_threads,
    sent,
    to,
)

pytestmark = pytest.mark.usefixtures("nothing_is_slow")


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were looked up."""
    asked: list[str] = []
    get, with_agent = Agents.get, Conversations.with_agent

    async def counted_get(self: Agents, tenant: TenantId, agent_id: AgentId) -> Agent:
        asked.append(agent_id)
        return await get(self, tenant, agent_id)

    async def counted_with_agent(
        self: Conversations, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, Agent]:
        asked.append(conversation_id)
        return await with_agent(self, tenant, conversation_id)

    monkeypatch.setattr(Agents, "get", counted_get)
    monkeypatch.setattr(Conversations, "with_agent", counted_with_agent)
    return asked


def commit(live: LiveServer, statement: str, *values: str) -> None:
    """Change the records as another program would."""
    with closing(sqlite3.connect(datadir.records_file(live.directory))) as connection, connection:
        connection.execute(statement, values)


async def opened(live: LiveServer) -> tuple[AgentId, ConversationId]:
    """Return an agent that answers at once, and a conversation with a turn."""
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    await sent(live, conversation, "hello")
    return AgentId(agent), ConversationId(conversation)


async def test_sends_find_their_conversation_once_while_only_runs_are_written(
    tmp_path: Path, queries: list[str]
) -> None:
    async with listening(tmp_path) as live, asyncio.timeout(WAIT_SECONDS):
        agent, conversation = await opened(live)
        while queries:  # The server's own upkeep writes too, now and then.
            queries.clear()
            for number in range(3):
                await sent(live, conversation, f"turn {number}")
            # The agent is known by its conversation.
            await sent(live, agent, "to the default conversation")


async def test_a_known_one_is_as_stored_but_for_its_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path) as live:
        agent_id, conversation_id = await opened(live)
        records = live.context.records
        monkeypatch.setattr(records._database, "other_commits", lambda: 1)
        await records.addressees.conversation(DEFAULT_TENANT, conversation_id)
        await sent(live, conversation_id, "again")
        known, its_agent = await records.addressees.conversation(DEFAULT_TENANT, conversation_id)
        stored = await records.conversations.get(DEFAULT_TENANT, conversation_id)
        agent = await records.agents.get(DEFAULT_TENANT, agent_id)
        assert known != stored
        assert replace(known, last_message_at=stored.last_message_at) == stored
        last_run = ("last_run_completion", "last_run_duration_ms", "last_stop_reason")
        facts = {name: getattr(agent, name) for name in last_run}
        assert replace(its_agent, **facts) == agent


async def test_a_change_by_a_client_counts_for_the_next_send(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await opened(live)
        await sent(live, conversation, "again")
        find = live.context.records.addressees.conversation
        for number in range(3):
            name, summary = f"agent {number}", f"summary {number}"
            await live.client.patch(f"/v1/agents/{agent}", json={"name": name})
            await live.client.patch(f"/v1/conversations/{conversation}", json={"summary": summary})
            found, its_agent = await find(DEFAULT_TENANT, conversation)
            assert (found.summary, its_agent.name) == (summary, name)


async def test_a_change_of_a_memory_block_counts_for_the_next_send(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await new_threads(
            live, memory_blocks=[{"label": "human", "value": "before"}]
        )
        live.gates.open(agent)
        find = live.context.records.addressees.agent
        for value in ("one", "two"):
            await sent(live, conversation, "hello")
            path = f"/v1/agents/{agent}/core-memory/blocks/human"
            assert (await live.client.patch(path, json={"value": value})).status_code == 200
            found = await find(DEFAULT_TENANT, AgentId(agent))
            assert [block.value for block in found.blocks] == [value]


async def test_a_change_by_another_program_counts_for_the_next_send(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await opened(live)
        find = live.context.records.addressees
        for name in ("one", "two"):
            await sent(live, conversation, "again")
            assert (await find.agent(DEFAULT_TENANT, agent)).name != name
            commit(live, "UPDATE agents SET name = ? WHERE id = ?", name, agent)
            assert (await find.agent(DEFAULT_TENANT, agent)).name == name
            assert (await find.conversation(DEFAULT_TENANT, conversation))[1].name == name


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_deleted_conversation_is_gone_for_the_next_send(
    tmp_path: Path, *, by_client: bool
) -> None:
    async with listening(tmp_path) as live:
        _, conversation = await opened(live)
        await sent(live, conversation, "again")
        if by_client:
            await live.client.delete(f"/v1/conversations/{conversation}")
        else:
            commit(
                live, "UPDATE conversations SET deleted_at = created_at WHERE id = ?", conversation
            )
        answer = await live.client.post(to(conversation), json=message_body("hello"))
        assert answer.status_code == 404


async def test_a_deleted_agent_is_gone_for_the_next_send(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await opened(live)
        await sent(live, agent, "again")
        assert (await live.client.delete(f"/v1/agents/{agent}")).status_code == 200
        for thread in (agent, conversation):
            answer = await live.client.post(to(thread), json=message_body("hello"))
            assert answer.status_code == 404


async def test_known_ones_are_missing_for_another_tenant(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, conversation = await opened(live)
        find = live.context.records.addressees
        await find.conversation(DEFAULT_TENANT, conversation)
        with pytest.raises(NotFoundError):
            await find.conversation(OTHER_TENANT, conversation)
        with pytest.raises(NotFoundError):
            await find.agent(OTHER_TENANT, agent)


async def test_no_more_are_known_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressees, "KNOWN_ADDRESSEES", 2)
    async with listening(tmp_path) as live:
        threads = [await opened(live) for _ in range(3)]
        find = live.context.records.addressees
        for _, conversation in threads:
            await find.conversation(DEFAULT_TENANT, conversation)
            assert 1 <= len(find._conversations) <= 2
            assert 1 <= len(find._agents) <= 2


async def test_a_large_one_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addressees, "KNOWN_ADDRESSEE_BYTES", 100)
    async with listening(tmp_path) as live:
        agent, _ = await opened(live)
        find = live.context.records.addressees
        await find.agent(DEFAULT_TENANT, agent)
        assert not find._agents
