"""Cached contexts equal those of the database."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from msgspec import structs

from reattach.domain.context import in_context
from reattach.domain.context_messages import ContextMessages
from reattach.domain.errors import ConversationBusyError, NotFoundError, PendingApprovalError
from reattach.domain.events import Usage
from reattach.domain.ids import new_message_id, new_run_id, new_step_id, new_uuid
from reattach.domain.limits import CONTEXT_IDLE_SECONDS
from reattach.domain.messages import (
    ApprovalPart,
    CompactionStats,
    Message,
    Role,
    SummaryPart,
    TextPart,
    ToolCallPart,
)
from reattach.records.base import Thread
from reattach.records.contexts import message_rows
from reattach.records.contexts.contexts import CachedContext, Contexts, ThreadContext
from reattach.records.contexts.message_rows import PIECE_ROWS, Placed
from reattach.records.records import Records
from tests.support.record_samples import (
    NOON,
    OURS,
    THEIRS,
    HandClock,
    World,
    a_conversation,
    a_message,
    a_run,
    a_settlement,
    a_step,
    a_system_message,
    ids,
)


def a_summary(kept_from: Message | None) -> Message:
    kept_id = None if kept_from is None else kept_from.id
    part = SummaryPart("so far", kept_id, CompactionStats("requested", 100, 9, 2))
    return Message(id=new_message_id(), role=Role.SUMMARY, parts=(part,), created_at=NOON)


class Changes:
    """Random changes of some threads of one agent, by two processes."""

    def __init__(self, world: World, other_process: Records, seed: int) -> None:
        self.choice = random.Random(seed)
        self.world = world
        self.processes = [world.records, other_process]
        self.threads = [world.default, world.thread]

    async def change(self) -> Thread:
        """Change a thread, or nothing if the change does not fit its state, and return it."""
        records = self.choice.choice(self.processes)
        thread = self.choice.choice(self.threads)
        changes = [self.say, self.say, self.answer, self.summarize, self.ask, self.recompile]
        change = self.choice.choice([*changes, self.cancel, self.reset, self.fork, self.delete])
        with suppress(ConversationBusyError):
            await change(records, thread)
        return thread if thread in self.threads else self.threads[0]

    async def say(self, records: Records, thread: Thread) -> None:
        for _ in range(self.choice.randint(1, 4)):
            role = self.choice.choice([Role.USER, Role.ASSISTANT, Role.APPROVAL, Role.SYSTEM])
            message = a_message(str(self.choice.random()), role)
            if role is Role.APPROVAL:
                message = structs.replace(message, parts=(ApprovalPart("call", approve=True),))
            await records.messages.append(OURS, thread, message)

    async def answer(self, records: Records, thread: Thread) -> None:
        """Settle a run with the usage of a step."""
        run = a_run(thread)
        with suppress(PendingApprovalError):
            await records.runs.create(OURS, run, None, ())
            tokens = self.choice.randint(1, 99)
            usage = Usage(prompt_tokens=tokens, total_tokens=tokens, step_count=1)
            step = a_step(run, usage=usage)
            said = a_message("yes", Role.ASSISTANT, step_id=step.id)
            await records.runs.settle(run.id, a_settlement(a_message(), said, steps=(step,)))

    async def ask(self, records: Records, thread: Thread) -> None:
        """Add a message whose calls wait for an approval."""
        asked = a_message("may I?", Role.ASSISTANT, step_id=new_step_id())
        call = ToolCallPart("call", "look", "{}", needs_approval=True)
        await records.messages.append(OURS, thread, structs.replace(asked, parts=(call,)))

    async def cancel(self, records: Records, thread: Thread) -> None:
        await records.messages.cancel_pending(OURS, thread, NOON)

    async def summarize(self, records: Records, thread: Thread) -> None:
        messages = (await records.messages.context(OURS, thread)).messages
        await records.messages.append(
            OURS, thread, a_summary(self.choice.choice([None, *messages]))
        )

    async def recompile(self, records: Records, thread: Thread) -> None:
        await records.messages.recompile(OURS, thread, a_message("new", Role.SYSTEM))

    async def reset(self, records: Records, _thread: Thread) -> None:
        system = self.choice.choice([None, a_system_message()])
        await records.messages.reset(OURS, self.world.agent.id, system)

    async def fork(self, records: Records, thread: Thread) -> None:
        messages = (await records.messages.context(OURS, thread)).messages[1:]
        up_to = self.choice.choice([None, *(one.id for one in messages)])
        new = a_conversation(self.world.agent.id)
        made = await records.conversations.fork(OURS, thread, new, a_system_message(), up_to=up_to)
        self.threads.append(Thread(self.world.agent.id, made.id))

    async def delete(self, records: Records, thread: Thread) -> None:
        """Delete a conversation, if there are several, and forget it."""
        if thread.conversation_id is None or len(self.threads) < 4:
            return
        self.threads.remove(thread)
        await records.conversations.delete(OURS, thread.conversation_id)
        await records.conversations.forget_deleted(10)
        for process in self.processes:
            with pytest.raises(NotFoundError):
                await process.messages.context(OURS, thread)


@pytest.mark.promise("P11")
@pytest.mark.parametrize(("seed", "limit_bytes"), [(1, 10**6), (2, 10**6), (3, 10_000)])
async def test_a_cached_context_equals_a_fresh_read_whichever_process_changed_the_thread(
    world: World, other_process: Records, seed: int, limit_bytes: int
) -> None:
    """C18: all changes of threads by two processes, whose caches hold all of them or few."""
    changes = Changes(world, other_process, seed)
    for process in changes.processes:
        process.messages._contexts = Contexts(limit_bytes)
    for _ in range(30):
        await check(changes, await changes.change())
    for thread in changes.threads:
        await check(changes, thread)
    for process in changes.processes:
        assert process.messages._contexts.size_bytes <= limit_bytes
        with pytest.raises(NotFoundError):
            await process.messages.context(THEIRS, world.thread)


async def check(changes: Changes, thread: Thread) -> None:
    """Compare the contexts that both processes have with a fresh read."""
    kept = [await one.messages.context(OURS, thread) for one in changes.processes]
    reader = changes.processes[1].messages
    cache, reader._contexts = reader._contexts, Contexts(0)
    fresh = await reader.context(OURS, thread)
    reader._contexts = cache
    assert kept == [fresh, fresh]


async def test_readers_of_one_context_at_once_get_the_same_and_do_not_change_it(
    world: World, other_process: Records
) -> None:
    """C18: two turns that extend the same cached context."""
    await world.turn("one", "two")
    before = await world.records.messages.context(OURS, world.thread)
    for _ in range(3):
        await other_process.messages.append(OURS, world.thread, a_message())
        reads = (world.records.messages.context(OURS, world.thread) for _ in range(4))
        several = await asyncio.gather(*reads)
        other_process.messages._contexts = Contexts(0)
        fresh = await other_process.messages.context(OURS, world.thread)
        assert several == [fresh] * 4
    assert before.messages == fresh.messages[:3]


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

    def counted(row: Any) -> Placed:
        read.append(row)
        return placed(row)

    placed = message_rows._placed
    messages = world.records.messages
    await world.turn(*(f"message {number}" for number in range(60)))
    await messages.context(OURS, world.thread)
    monkeypatch.setattr(message_rows, "_placed", counted)
    for _ in range(3):
        read.clear()
        await world.turn("more")
        context = await messages.context(OURS, world.thread)
        assert len(read) < 10
    assert len(context.messages) > 60


async def test_a_context_of_many_messages_is_that_of_all_wherever_its_summary_is(
    world: World, other_process: Records
) -> None:
    """C18: longer than the pieces that are read, and with a summary that keeps some pieces."""
    messages = world.records.messages
    _, said = await world.turn(*map(str, range(PIECE_ROWS * 2 + 10)))
    everything = [world.system_message, *said]
    for place in (None, 1, PIECE_ROWS - 1, PIECE_ROWS, PIECE_ROWS * 2 + 3, len(said), -1):
        if place is not None:
            summary = a_summary(everything[place])
            await messages.append(OURS, world.thread, summary)
            everything.append(summary)
        other_process.messages._contexts = Contexts(10**7)
        expected = in_context(everything)
        for process in (world.records, other_process, other_process):
            assert (await process.messages.context(OURS, world.thread)).messages == expected


async def test_a_thread_that_another_process_emptied_and_filled_again_is_read_anew(
    world: World, other_process: Records
) -> None:
    """C18: the new messages have the positions of the old ones."""
    messages = world.records.messages
    await messages.reset(OURS, world.agent.id, a_system_message())
    for count in (1, 3, 3, 2):
        new = [a_message(str(number)) for number in range(count)]
        await other_process.messages.reset(OURS, world.agent.id)
        for message in new:
            await other_process.messages.append(OURS, world.default, message)
        assert (await messages.context(OURS, world.default)).following == new


def kept(number: int, size_bytes: int) -> CachedContext:
    message = Message(
        id=new_message_id(), role=Role.USER, parts=(TextPart(str(number)),), created_at=NOON
    )
    context = ContextMessages([message])
    return CachedContext(context, context, (number, message.id), None, size_bytes)


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


async def test_a_context_is_dropped_an_hour_after_its_last_turn(
    world: World, clock: HandClock
) -> None:
    """C18: text that another process deleted does not stay in memory."""
    messages = world.records.messages
    await world.turn("one")
    other = Thread(world.agent.id, (await world.another()).id)
    await world.turn("two", thread=other)
    await messages.context(OURS, world.thread)
    await clock.sleep(CONTEXT_IDLE_SECONDS / 2)
    await messages.context(OURS, other)
    await clock.sleep(CONTEXT_IDLE_SECONDS / 2)
    await world.records.tidy()

    assert messages._contexts.get(world.thread.key) is None
    kept = messages._contexts.get(other.key)
    assert kept is not None
    assert messages._contexts.size_bytes == kept.size_bytes


async def test_the_next_turn_gets_the_same_message_objects(world: World) -> None:
    """C18: values that were derived from a message stay cached with it."""
    messages = world.records.messages
    await world.turn("one")
    first: ThreadContext = await messages.context(OURS, world.thread)
    await world.turn("two")
    second = await messages.context(OURS, world.thread)
    pairs = zip(first.messages[1:], second.messages[1:], strict=False)
    assert all(one is other for one, other in pairs)


@pytest.mark.parametrize("text", ["plain", "日本語" * 20, "long " * 400])
def test_the_counted_bytes_are_about_those_that_a_context_takes(text: str) -> None:
    """C18: by the allocations of Python, whatever the texts consist of."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    messages = [a_stored_message(f"{text} {number}") for number in range(200)]
    last = Placed(200, messages[-1])
    context = CachedContext.of(messages, last.place, None)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 < context.size_bytes / (after - before) < 1.6


def a_stored_message(text: str) -> Message:
    """Return a message with all fields that a stored one has, none of them shared."""
    return a_message(
        text,
        Role.ASSISTANT,
        otid=new_uuid(),
        run_id=new_run_id(),
        step_id=new_step_id(),
        created_at=NOON.replace(microsecond=len(text)),
    )
