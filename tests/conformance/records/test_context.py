"""The messages in context of a thread, after compactions."""

from __future__ import annotations

import pytest

from reattach.domain.errors import NotFoundError
from reattach.domain.events import Usage
from reattach.domain.ids import MessageId, new_message_id, new_step_id
from reattach.domain.messages import CompactionStats, Message, Role, SummaryPart
from reattach.records.base import (
    Span,
    Thread,
)
from tests.support.record_samples import (
    NOON,
    OURS,
    THEIRS,
    World,
    a_block,
    a_conversation,
    a_message,
    a_settlement,
    a_step,
    a_system_message,
    ids,
    setting,
)


def a_summary(kept_from: MessageId | None) -> Message:
    part = SummaryPart("so far", kept_from, CompactionStats("requested", 100, 9, 2))
    return Message(id=new_message_id(), role=Role.SUMMARY, parts=(part,), created_at=NOON)


@pytest.mark.promise("P16")
async def test_a_summary_replaces_the_messages_before_the_first_kept_one(world: World) -> None:
    messages = world.records.messages
    _, [one, two, three] = await world.turn("one", "two", "three")
    summary = a_summary(three.id)
    await messages.append(OURS, world.thread, summary)
    _, [four] = await world.turn("four")
    context = await messages.context(OURS, world.thread)
    expected = [world.system_message.id, summary.id, three.id, four.id]
    assert ids(context.messages) == expected
    assert context.messages[1] == summary
    shown = await world.records.conversations.message_ids(OURS, world.thread)
    assert shown == expected
    every = await messages.list(OURS, world.thread, Span(100, ascending=True))
    assert ids(every)[1:] == [one.id, two.id, three.id, summary.id, four.id]


async def test_the_newest_summary_counts_and_one_without_a_kept_message_replaces_all(
    world: World,
) -> None:
    messages = world.records.messages
    _, [one] = await world.turn("one")
    await messages.append(OURS, world.thread, a_summary(one.id))
    for kept_from in (None, new_message_id()):
        summary = a_summary(kept_from)
        await messages.append(OURS, world.thread, summary)
        context = await messages.context(OURS, world.thread)
        assert ids(context.messages) == [world.system_message.id, summary.id]


async def test_a_fork_has_the_context_of_its_source_up_to_where_it_ends(world: World) -> None:
    messages, conversations = world.records.messages, world.records.conversations
    _, [one, two] = await world.turn("one", "two")
    summary = a_summary(two.id)
    await messages.append(OURS, world.thread, summary)
    for up_to, expected in (
        (None, [summary.id, two.id]),
        (summary.id, [summary.id, two.id]),
        (two.id, [one.id, two.id]),
    ):
        new = a_conversation(world.agent.id)
        fork = await conversations.fork(OURS, world.thread, new, a_system_message(), up_to=up_to)
        thread = Thread(world.agent.id, fork.id)
        assert ids((await messages.context(OURS, thread)).messages)[1:] == expected
        assert (await conversations.message_ids_of(OURS, [fork]))[fork.id][1:] == expected


async def test_the_counted_tokens_are_those_of_the_last_answer_after_the_last_summary(
    world: World,
) -> None:
    messages, runs = world.records.messages, world.records.runs
    assert (await messages.context(OURS, world.thread)).counted_tokens is None
    run = await world.start()
    step = a_step(run, usage=Usage(prompt_tokens=40, total_tokens=50, step_count=1))
    answer = a_message("yes", Role.ASSISTANT, step_id=step.id)
    assert await runs.settle(run.id, a_settlement(answer, steps=(step,)))
    assert (await messages.context(OURS, world.thread)).counted_tokens == 40
    unknown = a_message("hm", Role.ASSISTANT, step_id=new_step_id())
    await messages.append(OURS, world.thread, unknown)
    assert (await messages.context(OURS, world.thread)).counted_tokens is None
    await messages.append(OURS, world.thread, a_summary(answer.id))
    assert (await messages.context(OURS, world.thread)).counted_tokens is None


@pytest.mark.promise("P11")
async def test_another_tenant_can_neither_read_nor_change_a_context(world: World) -> None:
    messages = world.records.messages
    with pytest.raises(NotFoundError):
        await messages.context(THEIRS, world.thread)
    with pytest.raises(NotFoundError):
        await messages.append(THEIRS, world.thread, a_summary(None))
    with pytest.raises(NotFoundError):
        await messages.recompile(THEIRS, world.thread, a_system_message())
    assert ids(await messages.history(OURS, world.thread)) == [world.system_message.id]


async def test_a_recompiled_system_message_keeps_its_id(world: World) -> None:
    messages = world.records.messages
    await world.turn("one")
    other = a_message("Now you sing.", Role.SYSTEM)
    await messages.recompile(OURS, world.thread, other)
    first = (await messages.history(OURS, world.thread))[0]
    assert (first.id, first.text) == (world.system_message.id, "Now you sing.")


async def test_a_thread_without_a_system_message_gets_it(world: World) -> None:
    first = a_system_message()
    await world.records.messages.recompile(OURS, world.default, first)
    assert ids(await world.records.messages.history(OURS, world.default)) == [first.id]


async def test_blocks_of_a_conversation_are_ordered_and_disappear_when_deleted(
    world: World,
) -> None:
    records = world.records
    isolated = (a_block("human"), a_block("persona"))
    new = a_conversation(world.agent.id, isolated_blocks=isolated)
    made = await records.conversations.create(OURS, new, a_system_message())
    assert made.isolated_blocks == isolated
    assert await records.conversations.get(OURS, made.id) == made
    await records.blocks.update(OURS, isolated[1].id, setting(value="stern"))
    await records.blocks.delete(OURS, isolated[0].id)
    [left] = (await records.conversations.get(OURS, made.id)).isolated_blocks
    assert (left.id, left.value) == (isolated[1].id, "stern")
