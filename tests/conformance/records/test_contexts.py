"""Cached contexts equal those of the database."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reattach.domain.ids import new_message_id
from reattach.domain.messages import CompactionStats, Message, Role, SummaryPart, TextPart
from reattach.records import threads
from reattach.records.base import Thread, ThreadContext
from reattach.records.contexts import CachedContext, Contexts
from reattach.records.records import Records
from tests.support.record_samples import (
    NOON,
    OURS,
    World,
    a_conversation,
    a_message,
    a_system_message,
    ids,
)


def a_summary(kept_from: Message | None) -> Message:
    kept_id = None if kept_from is None else kept_from.id
    part = SummaryPart("so far", kept_id, CompactionStats("requested", 100, 9, 2))
    return Message(id=new_message_id(), role=Role.SUMMARY, parts=(part,), created_at=NOON)


@pytest.mark.parametrize("seed", range(3))
async def test_a_cached_context_equals_a_fresh_read_whichever_process_changed_the_thread(
    world: World, other_process: Records, seed: int
) -> None:
    """C18: appends, summaries, system messages, resets and turns, here and in another process."""
    choice = random.Random(seed)
    thread = Thread(world.agent.id, None)
    await world.records.messages.reset(OURS, world.agent.id, a_system_message())
    for _ in range(25):
        writer = choice.choice([world.records, other_process]).messages
        context = await world.records.messages.context(OURS, thread)
        match choice.choice(["say", "say", "say", "summarize", "recompile", "reset", "read"]):
            case "say":
                for _ in range(choice.randint(1, 4)):
                    await writer.append(OURS, thread, a_message())
            case "summarize":
                await writer.append(
                    OURS, thread, a_summary(choice.choice([None, *context.messages[1:]]))
                )
            case "recompile":
                await writer.recompile(OURS, thread, a_system_message())
            case "reset":
                await writer.reset(OURS, world.agent.id)
            case _:
                pass
        kept = await world.records.messages.context(OURS, thread)
        other_process.messages._contexts = Contexts(0)
        assert kept == await other_process.messages.context(OURS, thread)


async def test_a_fork_has_a_context_of_its_own(world: World) -> None:
    """C18"""
    messages = world.records.messages
    await world.turn("one")
    source = await messages.context(OURS, world.thread)
    fork = a_conversation(world.agent.id)
    await world.records.conversations.fork(OURS, world.thread, fork, a_system_message(), up_to=None)
    thread = Thread(world.agent.id, fork.id)
    await messages.append(OURS, thread, a_message())

    assert await messages.context(OURS, world.thread) == source
    assert ids((await messages.context(OURS, thread)).messages)[1:-1] == ids(source.messages)[1:]


async def test_a_turn_reads_no_more_of_a_long_conversation_than_of_a_short_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C18"""
    read: list[Any] = []

    def counted(row: Any) -> Message:
        read.append(row["id"])
        return message_of(row)

    message_of = threads.message_of
    messages = world.records.messages
    await world.turn(*(f"message {number}" for number in range(60)))
    await messages.context(OURS, world.thread)
    monkeypatch.setattr(threads, "message_of", counted)
    for _ in range(3):
        read.clear()
        await world.turn("more")
        context = await messages.context(OURS, world.thread)
        assert len(read) < 10
    assert len(context.messages) > 60


def kept(number: int, size_bytes: int) -> CachedContext:
    message = Message(
        id=new_message_id(), role=Role.USER, parts=(TextPart(str(number)),), created_at=NOON
    )
    return CachedContext((message,), (number, message.id), None, size_bytes)


def test_the_cache_keeps_the_most_recently_used_contexts_within_its_limit() -> None:
    """C18"""
    contexts = Contexts(100)
    for number in range(4):
        contexts.put(str(number), kept(number, 30))
        contexts.get("0")
    assert [contexts.get(str(number)) is not None for number in range(4)] == [
        True,
        False,
        True,
        True,
    ]
    contexts.put("0", kept(0, 101))
    assert contexts.get("0") is None
    contexts.put("2", None)
    assert contexts.size_bytes == 30


async def test_the_next_turn_gets_the_same_message_objects(world: World) -> None:
    """C18: values that were derived from a message stay cached with it."""
    messages = world.records.messages
    await world.turn("one")
    first: ThreadContext = await messages.context(OURS, world.thread)
    await world.turn("two")
    second = await messages.context(OURS, world.thread)
    pairs = zip(first.messages[1:], second.messages[1:], strict=False)
    assert all(one is other for one, other in pairs)
