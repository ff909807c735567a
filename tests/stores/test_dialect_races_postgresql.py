"""Requests of one client in two processes at once, on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.errors import ConversationKeyTakenError
from reattach.records.base import Conversation, RunKnown, Thread
from reattach.records.conversations import insert_conversation
from reattach.records.records import Records
from reattach.records.runs import admission
from reattach.records.runs.created import RunCreated
from reattach.records.runs.openings import ConversationKey, Opening
from reattach.records.runs.retries import RequestDigest
from tests.support.record_samples import (
    OURS,
    World,
    a_conversation,
    a_run,
    a_settlement,
    a_system_message,
    a_world,
)

pytestmark = pytest.mark.slow


@pytest.fixture
async def processes(postgresql_url: str) -> AsyncIterator[list[Records]]:
    opened = [await Records.open(postgresql_url, clock=SystemClock()) for _ in range(2)]
    yield opened
    for one in opened:
        await one.aclose()


@pytest.fixture
def one_has_ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Two transactions look for the key; then one of them waits until the other one has ended.

    The test sets the event as soon as the first call has returned.
    """
    barrier, places, ended = threading.Barrier(2), iter(range(2)), threading.Event()

    def insert_in_turn(*given: Any) -> None:
        place = next(places, None)
        if place is not None:  # A transaction that is repeated does not wait.
            barrier.wait(10)
        if place == 0:
            assert ended.wait(10)
        insert_conversation(*given)

    monkeypatch.setattr(admission, "insert_conversation", insert_in_turn)
    return ended


@pytest.mark.promise("P10")
@pytest.mark.parametrize("before", ["nothing", "deleted", "replaced"])
async def test_of_two_requests_at_once_under_one_key_one_begins_the_conversation(
    processes: list[Records], one_has_ended: threading.Event, before: str
) -> None:
    world = await a_world(processes[0])
    key = ConversationKey(world.agent.id, "chat", "chat-1")
    replaces = None
    if before != "nothing":
        first = a_conversation(world.agent.id)
        opening = Opening(first, a_system_message(), key)
        await open_alone(processes[0], world.agent.id, opening)
        if before == "deleted":
            await processes[0].conversations.delete(OURS, first.id)
        else:
            replaces = first.id
    conversations = [a_conversation(world.agent.id) for _ in processes]

    async def begin(records: Records, conversation: Conversation) -> RunCreated | RunKnown:
        run = a_run(Thread(world.agent.id, conversation.id))
        opening = Opening(conversation, a_system_message(), key, replaces=replaces)
        try:
            return await records.runs.create(OURS, run, None, (), opening=opening)
        finally:
            one_has_ended.set()

    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(
            *map(begin, processes, conversations), return_exceptions=True
        )
    created = [one for one in outcomes if isinstance(one, RunCreated)]
    assert len(created) == 1, outcomes
    (refused,) = (one for one in outcomes if not isinstance(one, RunCreated))
    assert isinstance(refused, ConversationKeyTakenError), refused
    found = await processes[0].conversation_keys.find(OURS, key)
    assert found == created[0].run.thread.conversation_id


async def open_alone(records: Records, agent_id: Any, opening: Opening) -> None:
    """Begin the conversation and end its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "insert_conversation", insert_conversation)
        run = a_run(Thread(agent_id, opening.conversation.id))
        await records.runs.create(OURS, run, None, (), opening=opening)
    await records.runs.settle(run.id, a_settlement())


@pytest.mark.promise("P9")
@pytest.mark.parametrize("retry_is_at", [0, 1])
async def test_a_request_and_its_retry_at_once_in_two_processes_are_one_run(
    processes: list[Records], retry_is_at: int
) -> None:
    for number in range(10):
        world = await a_world(processes[0])
        arrived = SystemClock().now()
        since = arrived - timedelta(seconds=120)
        digests = [RequestDigest(f"dialect:chat-{number}") for _ in processes]
        digests[retry_is_at] = replace(digests[retry_is_at], since=since)

        async def begin(
            records: Records,
            digest: RequestDigest,
            world: World = world,
            arrived: datetime = arrived,
        ) -> RunCreated | RunKnown:
            conversation = a_conversation(world.agent.id)
            run = a_run(Thread(world.agent.id, conversation.id), created_at=arrived)
            opening = Opening(conversation, a_system_message())
            return await records.runs.create(OURS, run, None, (), digest=digest, opening=opening)

        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*map(begin, processes, digests))
        assert len({one.run.id for one in outcomes}) == 1
        assert sorted(type(one).__name__ for one in outcomes) == ["RunCreated", "RunKnown"]
        first = outcomes[1 - retry_is_at].run
        await processes[0].runs.settle(first.id, a_settlement())
        intended = await begin(
            processes[0], RequestDigest(digests[0].name), arrived=SystemClock().now()
        )
        assert isinstance(intended, RunCreated)
