"""Sends in other dialects: conversations under names of the client, and requests sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.errors import ConversationBusyError, OtidConflictError
from reattach.domain.ids import DEFAULT_TENANT, AgentId, new_message_id
from reattach.domain.messages import Message, Role, TextPart
from reattach.http.dialects.sending import RETRY_SECONDS, DialectSend, DialectSends
from reattach.http.middleware.access import Access, AccessWatch
from reattach.http.middleware.quotas import Quotas
from reattach.records.base import Run
from tests.support.live_server import LiveServer, listening


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


class Sender:
    """Sends to one agent as a client of a dialect does."""

    def __init__(self, live: LiveServer, agent_id: str) -> None:
        self.live = live
        self.agent_id = AgentId(agent_id)
        quotas: Quotas = live.app.state.quotas
        watch = AccessWatch(live.context.records.keys, None, live.clock, 60.0)
        self.access = Access(watch, quotas, None)
        self.sends = DialectSends(live.context)

    async def send(self, text: str, **more: Any) -> Run:
        agent = await self.live.context.records.agents.get(DEFAULT_TENANT, self.agent_id)
        message = Message(
            id=new_message_id(),
            role=Role.USER,
            parts=(TextPart(text),),
            created_at=self.live.clock.now(),
        )
        options = {"dialect": "chat_completions", "payload": text, **more}
        return await self.sends.start(
            self.access, DialectSend(agent=agent, messages=[message], **options)
        )

    async def runs(self) -> list[str]:
        return await self.live.run_ids(agent_id=self.agent_id)

    async def end(self, *runs: Run) -> None:
        for run in runs:
            await self.live.ended(run.id)


@pytest.fixture
async def sender(live: LiveServer) -> Sender:
    return Sender(live, (await live.agent())["id"])


@pytest.mark.promise("P9", "P10")
async def test_of_twenty_sends_at_once_under_a_new_name_one_begins_the_conversation(
    sender: Sender,
) -> None:
    sender.live.gates.hold(sender.agent_id)
    outcomes = await asyncio.gather(
        *(sender.send(f"hi {number}", key="chat-1") for number in range(20)),
        return_exceptions=True,
    )
    runs = [one for one in outcomes if isinstance(one, Run)]
    refused = [one for one in outcomes if not isinstance(one, Run)]
    assert len(runs) == 1
    assert all(isinstance(one, ConversationBusyError) for one in refused), refused
    assert await sender.runs() == [runs[0].id]
    await sender.end(*runs)


async def test_a_name_leads_to_the_same_conversation_each_time(sender: Sender) -> None:
    sender.live.gates.open(sender.agent_id)
    first = await sender.send("one", key="chat-1")
    await sender.end(first)
    second = await sender.send("two", key="chat-1")
    await sender.end(second)
    other = await sender.send("one", key="chat-2")
    await sender.end(other)
    unnamed = await sender.send("one")
    await sender.end(unnamed)
    assert first.conversation_id == second.conversation_id
    assert len({first.conversation_id, other.conversation_id, unnamed.conversation_id}) == 3


async def test_dialects_and_agents_have_names_of_their_own(sender: Sender) -> None:
    sender.live.gates.open(sender.agent_id)
    ours = await sender.send("hi", key="chat-1")
    theirs = await sender.send("hi", key="chat-1", dialect="responses")
    await sender.end(ours, theirs)
    assert ours.conversation_id != theirs.conversation_id


async def test_the_name_of_a_deleted_conversation_begins_another_one(sender: Sender) -> None:
    sender.live.gates.open(sender.agent_id)
    first = await sender.send("hi", key="chat-1")
    await sender.end(first)
    deleted = await sender.live.client.delete(f"/v1/conversations/{first.conversation_id}")
    assert deleted.status_code == 200
    second = await sender.send("hi again", key="chat-1")
    await sender.end(second)
    assert second.conversation_id != first.conversation_id


@pytest.mark.promise("P9")
@pytest.mark.parametrize("key", ["chat-1", None])
async def test_a_request_marked_as_a_retry_gets_the_run_of_the_first(
    sender: Sender, key: str | None
) -> None:
    first = await sender.send("hi", key=key)
    again = await sender.send("hi", key=key, is_retry=True)
    assert again.id == first.id
    await sender.end(first)
    after_the_end = await sender.send("hi", key=key, is_retry=True)
    assert after_the_end.id == first.id
    assert await sender.runs() == [first.id]


@pytest.mark.promise("P9")
async def test_a_retry_that_overtakes_its_first_attempt_waits_for_it(sender: Sender) -> None:
    sending = asyncio.create_task(sender.send("hi"))
    async with asyncio.timeout(20):
        while not sender.sends._starting:
            await asyncio.sleep(0)
    again = await sender.send("hi", is_retry=True)
    first = await sending
    assert first.id == again.id
    await sender.end(first)


async def test_a_request_that_is_no_retry_or_comes_late_starts_a_run_of_its_own(
    sender: Sender,
) -> None:
    first = await sender.send("hi")
    await sender.end(first)
    second = await sender.send("hi")
    await sender.end(second)
    assert second.id != first.id
    newest = await sender.send("hi", is_retry=True)
    assert newest.id == second.id
    sender.live.clock.skipped_seconds += RETRY_SECONDS + 1
    late = await sender.send("hi", is_retry=True)
    await sender.end(late)
    assert late.id not in (first.id, second.id)
    other = await sender.send("hello", is_retry=True)
    await sender.end(other)
    assert len(await sender.runs()) == 4


@pytest.mark.promise("P9")
@pytest.mark.parametrize("key", ["chat-1", None])
async def test_an_idempotency_key_names_one_run_whatever_the_time(
    sender: Sender, key: str | None
) -> None:
    first = await sender.send("hi", key=key, idempotency_key="request-1")
    await sender.end(first)
    sender.live.clock.skipped_seconds += 10 * RETRY_SECONDS
    again = await sender.send("hi", key=key, idempotency_key="request-1")
    assert again.id == first.id
    with pytest.raises(OtidConflictError):
        await sender.send("other", key=key, idempotency_key="request-1")
    assert await sender.runs() == [first.id]


async def test_a_new_conversation_may_begin_with_earlier_messages(sender: Sender) -> None:
    sender.live.gates.open(sender.agent_id)
    now = sender.live.clock.now()
    earlier = [
        Message(id=new_message_id(), role=role, parts=(TextPart(text),), created_at=now)
        for role, text in ((Role.USER, "Before"), (Role.ASSISTANT, "Yes"))
    ]
    run = await sender.send("And now", earlier=earlier, hides_conversation=True)
    await sender.end(run)
    assert run.conversation_id is not None
    contents = [text for _, text in await sender.live.contents(run.conversation_id)]
    assert contents[:3] == ["Before", "Yes", "And now"]
    listed = await sender.live.got("/v1/conversations/", agent_id=sender.agent_id)
    assert listed == []
