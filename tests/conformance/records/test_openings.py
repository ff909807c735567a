"""Conversations that a run creates with itself."""

from __future__ import annotations

from typing import Any

import pytest

from reattach.domain.errors import ConversationKeyTakenError, NotFoundError
from reattach.domain.ids import ConversationId, RunId, new_message_id
from reattach.records.base import RequestExtras, RunKnown, Thread
from reattach.records.runs.created import RunCreated
from reattach.records.runs.openings import NAMELESS_RUN_TYPE, ConversationKey, Opening
from reattach.records.runs.retries import RequestDigest
from tests.support.record_samples import (
    OURS,
    World,
    a_conversation,
    a_message,
    a_run,
    a_settlement,
    a_system_message,
    at,
    first,
    ids,
)


async def test_a_run_in_a_new_fork_shares_the_messages_up_to_the_given_one(world: World) -> None:
    _, (one, two, _three) = await world.turn("one", "two", "three")
    system, more = a_system_message(), a_message("more")
    fork = a_conversation(world.agent.id)
    opening = Opening(fork, system, earlier=(more,), source=world.thread, up_to=two.id)
    run = a_run(Thread(world.agent.id, fork.id))
    created = await world.records.runs.create(OURS, run, None, (), opening=opening)
    assert created == RunCreated(run)
    history = await world.records.messages.history(OURS, run.thread)
    assert history == [system, one, two, more]


async def test_a_fork_that_cannot_be_made_leaves_neither_a_run_nor_a_conversation(
    world: World,
) -> None:
    await world.turn("one")
    before = ids(await world.records.conversations.list(OURS, first()))
    runs = ids(await world.records.runs.list(OURS, first()))
    fork = a_conversation(world.agent.id)
    opening = Opening(fork, a_system_message(), source=world.thread, up_to=new_message_id())
    with pytest.raises(NotFoundError):
        await world.records.runs.create(
            OURS, a_run(Thread(world.agent.id, fork.id)), None, (), opening=opening
        )
    assert ids(await world.records.conversations.list(OURS, first())) == before
    assert ids(await world.records.runs.list(OURS, first())) == runs


async def test_a_key_opens_one_conversation_and_names_it_from_then_on(world: World) -> None:
    key = ConversationKey(world.agent.id, "chat", "chat-1")
    conversations = [a_conversation(world.agent.id) for _ in range(2)]
    run = a_run(Thread(world.agent.id, conversations[0].id))
    opening = Opening(conversations[0], a_system_message(), key)
    await world.records.runs.create(OURS, run, None, (), opening=opening)
    assert await world.records.conversation_keys.find(OURS, key) == conversations[0].id
    late = Opening(conversations[1], a_system_message(), key)
    with pytest.raises(ConversationKeyTakenError):
        await world.records.runs.create(
            OURS, a_run(Thread(world.agent.id, conversations[1].id)), None, (), opening=late
        )
    with pytest.raises(NotFoundError):
        await world.records.conversations.get(OURS, conversations[1].id)


@pytest.mark.parametrize("log_goes_first", [True, False])
async def test_a_deleted_conversation_keeps_nothing_of_its_requests_without_their_logs(
    world: World, log_goes_first: bool
) -> None:
    extras = RequestExtras(given='{"instructions": "a secret"}')
    run = a_run(world.thread, request_extras=extras)
    runs, conversations = world.records.runs, world.records.conversations
    await runs.create(OURS, run, None, ())
    await runs.settle(run.id, a_settlement())
    await conversations.delete(OURS, world.conversation.id)
    if log_goes_first:
        await runs.mark_log_deleted([run.id], at(1))
        await conversations.forget_deleted(10)
    else:
        await conversations.forget_deleted(10)
        assert (await runs.get(OURS, run.id)).request_extras == extras
        await runs.mark_log_deleted([run.id], at(1))
    assert (await runs.get(OURS, run.id)).request_extras is None


async def test_nameless_chats_are_deleted_once_the_logs_of_all_their_runs_are_gone(
    world: World,
) -> None:
    records, agent = world.records, world.agent

    async def opened(*run_types: str, key: str | None = None, **members: Any) -> ConversationId:
        """Open a conversation with ended runs, of which the last one has its log."""
        conversation = a_conversation(agent.id, **{"hidden": True, **members})
        named = None if key is None else ConversationKey(agent.id, "chat_completions", key)
        opening: Opening | None = Opening(conversation, a_system_message(), named)
        for run_type in run_types:
            run = a_run(Thread(agent.id, conversation.id), run_type=run_type)
            await records.runs.create(OURS, run, None, (), opening=opening)
            await records.runs.settle(run.id, a_settlement())
            opening = None
            ended.append(run.id)
        return conversation.id

    async def is_there(conversation: ConversationId) -> bool:
        try:
            await records.conversations.get(OURS, conversation)
        except NotFoundError:
            return False
        return True

    ended: list[RunId] = []
    nameless = await opened(NAMELESS_RUN_TYPE)
    kept = [
        await opened(NAMELESS_RUN_TYPE, "send_message"),
        await opened("send_responses"),
        await opened(NAMELESS_RUN_TYPE, key="chat-1"),
        await opened(NAMELESS_RUN_TYPE, hidden=None),
    ]
    first_logs = list(ended)
    twice = await opened(NAMELESS_RUN_TYPE, NAMELESS_RUN_TYPE)
    assert await records.conversation_keys.delete_nameless(10) == 0
    await records.runs.mark_log_deleted([*first_logs, ended[-2]], at(1))
    assert await records.conversation_keys.delete_nameless(10) == 1
    assert await records.conversation_keys.delete_nameless(10) == 0
    assert [await is_there(one) for one in (nameless, *kept, twice)] == [False, *[True] * 5]
    await records.runs.mark_log_deleted([ended[-1]], at(1))
    assert await records.conversation_keys.delete_nameless(10) == 1
    assert not await is_there(twice)


@pytest.mark.promise("P9")
async def test_a_first_attempt_gets_the_run_of_a_retry_that_overtook_it_while_that_is_active(
    world: World,
) -> None:
    runs, name = world.records.runs, "dialect:chat-1"

    async def sent(at_seconds: float, since_seconds: float | None = None) -> RunCreated | RunKnown:
        conversation = a_conversation(world.agent.id)
        run = a_run(Thread(world.agent.id, conversation.id), created_at=at(at_seconds))
        since = None if since_seconds is None else at(since_seconds)
        opening = Opening(conversation, a_system_message())
        return await runs.create(
            OURS, run, None, (), digest=RequestDigest(name, since), opening=opening
        )

    retry = await sent(100, since_seconds=0)
    assert isinstance(retry, RunCreated)
    assert await sent(102) == RunKnown(retry.run)
    assert isinstance(await sent(110), RunCreated)  # It comes too late to be that one.
    await runs.settle(retry.run.id, a_settlement())
    intended = await sent(102)
    assert isinstance(intended, RunCreated)
    newest = await sent(120, since_seconds=0)
    assert isinstance(newest, RunKnown)
