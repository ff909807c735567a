from __future__ import annotations

import pytest

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import new_agent_id, new_message_id
from reattach.records import threads
from reattach.records.base import Conversation, Thread
from reattach.records.records import Records
from tests.support.record_samples import (
    OURS,
    THEIRS,
    HandClock,
    World,
    a_conversation,
    a_settlement,
    a_system_message,
    an_agent,
    at,
    first,
    ids,
    last,
    setting,
)


async def test_a_created_conversation_is_read_back_unchanged(world: World) -> None:
    message = a_system_message()
    conversation = a_conversation(
        world.agent.id,
        summary="tea",
        description="about tea",
        model="openai/gpt",
        model_settings={"a": 1},
        context_window_limit=1000,
        hidden=False,
        archived_at=at(1),
        last_message_at=at(2),
    )
    conversations = world.records.conversations
    assert await conversations.create(OURS, conversation, message) == conversation
    assert await conversations.get(OURS, conversation.id) == conversation
    thread = Thread(world.agent.id, conversation.id)
    assert await conversations.message_ids(OURS, thread) == [message.id]


async def test_a_conversation_of_an_unknown_agent_is_refused(records: Records) -> None:
    with pytest.raises(NotFoundError, match=r"^Agent not found$"):
        await records.conversations.create(OURS, a_conversation(new_agent_id()), a_system_message())


async def test_an_update_sets_and_clears_the_named_fields(world: World, clock: HandClock) -> None:
    conversations, wanted = world.records.conversations, world.conversation.id
    await conversations.update(OURS, wanted, setting(summary="tea", description="d"))
    clock.time = at(7)
    changed = await conversations.update(OURS, wanted, setting(summary=None, archived_at=at(7)))
    assert (changed.summary, changed.description, changed.archived_at) == (None, "d", at(7))
    assert changed.updated_at == at(7)
    with pytest.raises(ValueError, match="agent_id"):
        await conversations.update(OURS, wanted, setting(agent_id=new_agent_id()))


@pytest.mark.parametrize("most", [0, 1, 200])
async def test_the_ids_of_messages_come_with_a_conversation_of_any_length(
    world: World, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    await world.turn("hello")
    monkeypatch.setattr(threads, "SHORT_THREAD", most)
    conversations = world.records.conversations
    message_ids = await conversations.message_ids(OURS, world.thread)
    assert len(message_ids) > 1
    found = await conversations.with_message_ids(OURS, world.conversation.id)
    assert found == (await conversations.get(OURS, world.conversation.id), message_ids)
    default = await conversations.message_ids(OURS, world.default)
    agent = await world.records.agents.get(OURS, world.agent.id)
    assert await world.records.agents.with_message_ids(OURS, agent.id) == (agent, default)
    for call in (
        conversations.with_message_ids(THEIRS, world.conversation.id),
        world.records.agents.with_message_ids(THEIRS, agent.id),
    ):
        with pytest.raises(NotFoundError):
            await call


async def test_a_deleted_conversation_is_not_found(world: World) -> None:
    conversations, gone = world.records.conversations, world.conversation.id
    run = await world.start()
    await conversations.delete(OURS, gone)
    text = f"^Conversation not found with id={gone}$"
    for call in (
        conversations.get(OURS, gone),
        conversations.update(OURS, gone, setting(summary="x")),
        conversations.delete(OURS, gone),
        conversations.message_ids(OURS, world.thread),
        conversations.list(OURS, first(after=gone)),
        conversations.fork(
            OURS, world.thread, a_conversation(world.agent.id), a_system_message(), up_to=None
        ),
        world.records.messages.history(OURS, world.thread),
        world.start(),
    ):
        with pytest.raises(NotFoundError, match=text):
            await call
    assert await conversations.list(OURS, first(), archive_status="all") == []
    assert await world.records.runs.settle(run.id, a_settlement())


@pytest.mark.promise("P11")
async def test_another_tenant_does_not_see_a_conversation(world: World) -> None:
    conversations, ours = world.records.conversations, world.conversation
    for call in (
        conversations.get(THEIRS, ours.id),
        conversations.update(THEIRS, ours.id, setting(summary="x")),
        conversations.delete(THEIRS, ours.id),
        conversations.message_ids(THEIRS, world.thread),
        conversations.message_ids(THEIRS, world.default),
        conversations.create(THEIRS, a_conversation(world.agent.id), a_system_message()),
        conversations.list(THEIRS, first(after=ours.id)),
        conversations.fork(
            THEIRS, world.thread, a_conversation(world.agent.id), a_system_message(), up_to=None
        ),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert await conversations.list(THEIRS, first(), agent_id=world.agent.id) == []
    assert await conversations.message_ids_of(THEIRS, [ours]) == {ours.id: []}
    assert await conversations.get(OURS, ours.id) == ours


async def test_an_agent_does_not_have_another_agents_conversation(world: World) -> None:
    other = await world.records.agents.create(OURS, an_agent())
    with pytest.raises(NotFoundError, match=world.conversation.id):
        await world.records.messages.history(OURS, Thread(other.id, world.conversation.id))


async def test_conversations_are_filtered(world: World) -> None:
    other = await world.records.agents.create(OURS, an_agent())
    tea = await world.another(summary="Green TEA", archived_at=at(1))
    await world.records.conversations.create(OURS, a_conversation(other.id), a_system_message())

    async def found(**filters: object) -> list[str]:
        return ids(await world.records.conversations.list(OURS, first(), **filters))  # type: ignore[arg-type]

    old = world.conversation.id
    assert len(await found(archive_status="all")) == 3
    assert await found(agent_id=world.agent.id) == [old]
    assert await found(agent_id=world.agent.id, archive_status="archived") == [tea.id]
    assert await found(agent_id=world.agent.id, archive_status="all") == [old, tea.id]
    assert await found(summary_search="tea", archive_status="all") == [tea.id]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4])
async def test_conversations_without_a_message_come_last_in_both_directions(
    records: Records, ascending: bool, size: int
) -> None:
    agent = await records.agents.create(OURS, an_agent())
    for moment in (None, at(2), at(1), None, at(2), None):
        await records.conversations.create(
            OURS, a_conversation(agent.id, last_message_at=moment), a_system_message()
        )

    async def page(**cursor: str) -> list[Conversation]:
        wanted = (first if ascending else last)(size, **cursor)
        return await records.conversations.list(OURS, wanted, order_by="last_message_at")

    walked = await page()
    while found := await page(after=walked[-1].id):
        walked += found
    ordered = [at(1), at(2), at(2)] if ascending else [at(2), at(2), at(1)]
    assert [row.last_message_at for row in walked] == [*ordered, None, None, None]
    assert len(set(ids(walked))) == 6
    back = await page(before=walked[-1].id)
    while found := await page(before=back[0].id):
        back = found + back
    assert ids(back) == ids(walked[:-1])


async def test_conversations_are_ordered_by_the_end_of_their_last_run(world: World) -> None:
    never = world.conversation
    early, late = await world.another(), await world.another()
    for conversation, seconds in ((late, 9), (early, 3)):
        thread = Thread(world.agent.id, conversation.id)
        await world.turn("x", thread=thread, completed_at=at(seconds))

    async def found(page: object) -> list[str]:
        rows = await world.records.conversations.list(
            OURS,
            page,  # type: ignore[arg-type]
            order_by="last_run_completion",
        )
        return ids(rows)

    assert await found(first()) == [early.id, late.id, never.id]
    assert await found(last()) == [late.id, early.id, never.id]


@pytest.mark.parametrize("named", [True, False])
async def test_a_fork_shows_the_same_messages_under_its_own_system_message(
    world: World, named: bool
) -> None:
    source = world.thread if named else world.default
    _, messages = await world.turn("one", "two", "three", thread=source)
    system_message = a_system_message()
    fork = await world.records.conversations.fork(
        OURS, source, a_conversation(world.agent.id), system_message, up_to=None
    )
    thread = Thread(world.agent.id, fork.id)
    history = await world.records.messages.history(OURS, thread)
    assert history == [system_message, *messages]

    _, more = await world.turn("four", thread=thread)
    assert await world.records.messages.history(OURS, thread) == [
        system_message,
        *messages,
        *more,
    ]
    in_source = [world.system_message, *messages] if named else messages
    assert await world.records.messages.history(OURS, source) == in_source


async def test_a_fork_ends_with_the_given_message(world: World) -> None:
    _, (one, two, _three) = await world.turn("one", "two", "three")
    system_message = a_system_message()

    async def fork(up_to: str) -> list[str]:
        new = await world.records.conversations.fork(
            OURS,
            world.thread,
            a_conversation(world.agent.id),
            system_message if up_to == two.id else a_system_message(),
            up_to=up_to,  # type: ignore[arg-type]
        )
        return ids(await world.records.messages.history(OURS, Thread(world.agent.id, new.id)))

    assert await fork(two.id) == [system_message.id, one.id, two.id]
    assert len(await fork(world.system_message.id)) == 1
    count = len(await world.records.conversations.list(OURS, first()))
    with pytest.raises(NotFoundError, match="Message with id"):
        await fork(new_message_id())
    assert len(await world.records.conversations.list(OURS, first())) == count


async def test_the_message_ids_of_many_conversations_are_read_by_one_query(world: World) -> None:
    _, messages = await world.turn("one", "two")
    other = await world.another()
    unknown = a_conversation(world.agent.id)
    conversations = world.records.conversations
    found = await conversations.message_ids_of(OURS, [other, world.conversation, unknown])
    assert found[world.conversation.id] == [world.system_message.id, *ids(messages)]
    assert found[world.conversation.id] == await conversations.message_ids(OURS, world.thread)
    assert len(found[other.id]) == 1
    assert found[unknown.id] == []
    assert await conversations.message_ids_of(OURS, []) == {}
