from __future__ import annotations

import pytest
from sqlalchemy import Connection, select

from reattach.domain.errors import ConversationBusyError, NotFoundError, OtidConflictError
from reattach.domain.ids import (
    new_agent_id,
    new_conversation_id,
    new_message_id,
    new_run_id,
    new_step_id,
)
from reattach.domain.messages import (
    HiddenReasoningPart,
    ImagePart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.records.base import (
    Span,
    Thread,
)
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.runs.retries import RequestDigest
from tests.support.record_samples import (
    OURS,
    THEIRS,
    World,
    a_conversation,
    a_message,
    a_run,
    a_settlement,
    a_system_message,
    at,
    ids,
)


async def test_every_kind_of_message_is_read_back_unchanged(world: World) -> None:
    run = await world.start()
    step_id = new_step_id()
    messages = (
        a_message("привет ☃ \U0001f600", name="Eve", otid="otid-1", sender_id="s-1", run_id=run.id),
        Message(
            id=new_message_id(),
            role=Role.ASSISTANT,
            parts=(
                ReasoningPart("because", signature="sig"),
                HiddenReasoningPart("redacted", "x"),
                TextPart(""),
                ImagePart(None, "image/png", "aGk="),
                ToolCallPart("call_1", "look", '{"a": 1}', needs_approval=True),
            ),
            created_at=at(0.000001),
            run_id=run.id,
            step_id=step_id,
        ),
        Message(
            id=new_message_id(),
            role=Role.TOOL,
            parts=(ToolReturnPart("call_1", "look", "error", "no", ("a",), ()),),
            created_at=at(1),
            run_id=run.id,
            step_id=step_id,
        ),
    )
    assert await world.records.runs.settle(run.id, a_settlement(*messages))
    history = await world.records.messages.history(OURS, world.thread)
    assert history == [world.system_message, *messages]
    for message in messages:
        assert await world.records.messages.get(OURS, message.id) == message


@pytest.mark.parametrize("ascending", [True, False])
async def test_before_is_older_and_after_is_newer_in_both_directions(
    world: World, ascending: bool
) -> None:
    _, messages = await world.turn(*"abcde")
    a, b, c, d, e = ids(messages)
    system = world.system_message.id

    async def page(limit: int, **cursors: str) -> list[str]:
        found = await world.records.messages.list(
            OURS,
            world.thread,
            Span(limit, ascending, **cursors),  # type: ignore[arg-type]
        )
        return ids(found)

    def shown(*oldest_first: str) -> list[str]:
        return list(oldest_first if ascending else oldest_first[::-1])

    assert await page(100) == shown(system, a, b, c, d, e)
    assert await page(2) == (shown(system, a) if ascending else shown(d, e))
    assert await page(2, before=d) == shown(b, c)
    assert await page(2, after=b) == shown(c, d)
    assert await page(2, before=system) == []
    assert await page(2, after=e) == []
    assert await page(100, after=a, before=e) == shown(b, c, d)
    assert await page(2, after=a, before=e) == (shown(b, c) if ascending else shown(c, d))
    assert await page(0) == []


async def test_messages_of_an_unknown_thread_or_with_an_unknown_cursor_are_not_found(
    world: World,
) -> None:
    messages = world.records.messages
    unknown = Thread(world.agent.id, new_conversation_id())
    with pytest.raises(NotFoundError, match=f"Conversation not found with id={unknown.key}"):
        await messages.list(OURS, unknown, Span(1, ascending=True))
    with pytest.raises(NotFoundError, match=r"Agent with ID agent-.* not found"):
        await messages.history(OURS, Thread(new_agent_id(), None))
    other = await world.another()
    (elsewhere,) = await world.records.conversations.message_ids(
        OURS, Thread(world.agent.id, other.id)
    )
    for cursor in (new_message_id(), elsewhere):
        text = f"^Message with id {cursor} not found.$"
        with pytest.raises(NotFoundError, match=text):
            await messages.list(OURS, world.thread, Span(1, ascending=True, before=cursor))
        with pytest.raises(NotFoundError, match=text):
            await messages.list(OURS, world.thread, Span(1, ascending=True, after=cursor))
    with pytest.raises(NotFoundError, match="Message with id"):
        await messages.get(OURS, new_message_id())
    with pytest.raises(NotFoundError, match="Run not found with id="):
        await messages.of_run(OURS, new_run_id(), Span(1, ascending=True))


async def test_the_messages_of_a_run_are_those_of_its_settlement(world: World) -> None:
    await world.turn("before")
    run_id, (one, two, three) = await world.turn("one", "two", "three")
    _, (after,) = await world.turn("after")

    async def page(limit: int, *, ascending: bool = True, **cursors: str) -> list[str]:
        found = await world.records.messages.of_run(
            OURS,
            run_id,
            Span(limit, ascending, **cursors),  # type: ignore[arg-type]
        )
        return ids(found)

    assert await page(9) == [one.id, two.id, three.id]
    assert await page(2, ascending=False) == [three.id, two.id]
    assert await page(1, before=three.id) == [two.id]
    assert await page(9, after=one.id) == [two.id, three.id]
    assert await page(9, after=after.id) == [one.id, two.id, three.id]  # No message of this run.
    running = await world.start()
    assert await world.records.messages.of_run(OURS, running.id, Span(9, ascending=True)) == []


async def test_messages_follow_those_of_their_own_thread_without_a_gap(
    world: World, shared_database: Database
) -> None:
    other = Thread(world.agent.id, (await world.another()).id)
    await world.turn("one", "two", "three")
    await world.turn("one", thread=other)
    await world.turn("four")

    def positions(connection: Connection, thread: Thread) -> list[int]:
        rows = schema.thread_messages
        places = select(rows.c.position).where(rows.c.thread_key == thread.key)
        return sorted(connection.execute(places).scalars())

    for thread, count in ((world.thread, 5), (other, 2)):
        found = await shared_database.in_read(positions, thread)
        assert found == [*range(found[0], found[0] + count)]


async def test_the_messages_of_an_agent_come_from_its_threads_and_once(world: World) -> None:
    messages, agent_id = world.records.messages, world.agent.id
    _, (one,) = await world.turn("one")
    _, (two,) = await world.turn("two", thread=world.default)
    gone = await world.another()
    await world.turn("gone", thread=Thread(agent_id, gone.id))
    await world.records.conversations.delete(OURS, gone.id)
    fork_system = a_system_message()
    await world.records.conversations.fork(
        OURS, world.thread, a_conversation(agent_id), fork_system, up_to=None
    )

    async def page(conversation_id: str | None = None, **cursors: str) -> list[str]:
        found = await messages.list_of_agent(
            OURS,
            agent_id,
            Span(9, ascending=True, **cursors),  # type: ignore[arg-type]
            conversation_id=conversation_id,  # type: ignore[arg-type]
        )
        return ids(found)

    system = world.system_message.id
    assert await page() == [system, one.id, two.id, fork_system.id]
    assert await page("default") == [two.id]
    assert await page(world.conversation.id) == [system, one.id]
    assert await page(after=one.id) == [two.id, fork_system.id]
    assert await page(before=one.id) == [system]
    assert await page("default", after=two.id) == []
    with pytest.raises(NotFoundError, match=gone.id):
        await page(gone.id)


async def test_a_reset_empties_the_default_thread_and_no_other(world: World) -> None:
    messages = world.records.messages
    _, (one,) = await world.turn("one")
    _, (two,) = await world.turn("two", thread=world.default)
    _, (shared,) = await world.turn("shared", thread=world.default)
    fork = await world.records.conversations.fork(
        OURS, world.default, a_conversation(world.agent.id), a_system_message(), up_to=None
    )
    await messages.reset(OURS, world.agent.id)
    assert await messages.history(OURS, world.default) == []
    assert await messages.history(OURS, world.thread) == [world.system_message, one]
    forked = await messages.history(OURS, Thread(world.agent.id, fork.id))
    assert forked[1:] == [two, shared]

    first, second = a_system_message(), a_system_message()
    await messages.reset(OURS, world.agent.id, first)
    _, (three,) = await world.turn("three", thread=world.default)
    assert await messages.history(OURS, world.default) == [first, three]
    await messages.reset(OURS, world.agent.id)
    assert await messages.history(OURS, world.default) == [first]
    await messages.reset(OURS, world.agent.id, second)
    assert await messages.history(OURS, world.default) == [second]
    for gone in (three, first):
        with pytest.raises(NotFoundError):
            await messages.get(OURS, gone.id)


async def test_a_reset_is_refused_during_a_run(world: World) -> None:
    run = await world.start(world.default)
    with pytest.raises(ConversationBusyError) as busy:
        await world.records.messages.reset(OURS, world.agent.id)
    assert busy.value.extra["run_id"] == run.id


@pytest.mark.promise("P11")
async def test_another_tenant_does_not_see_a_message(world: World) -> None:
    messages = world.records.messages
    run_id, (one,) = await world.turn("secret")
    for call in (
        messages.get(THEIRS, one.id),
        messages.list(THEIRS, world.thread, Span(9, ascending=True)),
        messages.history(THEIRS, world.thread),
        messages.history(THEIRS, world.default),
        messages.of_run(THEIRS, run_id, Span(9, ascending=True)),
        messages.list_of_agent(THEIRS, world.agent.id, Span(9, ascending=True)),
        messages.reset(THEIRS, world.agent.id),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert await messages.get(OURS, one.id) == one


async def test_all_messages_of_a_run_are_returned_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JSON answer had only the first thousand messages of its run."""
    run_id, messages = await world.turn("1", "2", "3", "4", "5")
    await world.turn("another run")
    for most in (1, 2, 5, 1000):
        monkeypatch.setattr("reattach.records.messages.MAX_PAGE_ITEMS", most)
        assert await world.records.messages.all_of_run(OURS, run_id) == messages


async def test_all_messages_of_a_run_are_returned_however_large_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends early at a number of bytes, and was taken for the last one."""
    run_id, messages = await world.turn(*(f"{number}" * 400 for number in range(5)))
    monkeypatch.setattr("reattach.records.paging.PAGE_BYTES", 1_000)
    assert await world.records.messages.all_of_run(OURS, run_id) == messages


@pytest.mark.promise("P9")
async def test_a_request_that_is_repeated_appends_its_messages_once(world: World) -> None:
    messages, now = world.records.messages, at(-1)
    sent = [a_message("one"), a_message("two")]
    first = await messages.add(OURS, world.thread, sent, RequestDigest("dialect:items_1%"))
    repetition = RequestDigest("dialect:items_1%", since=now)
    again = [a_message("one"), a_message("two")]
    assert await messages.add(OURS, world.thread, again, repetition) == first
    assert (await messages.history(OURS, world.thread))[1:] == first
    with pytest.raises(OtidConflictError):
        await messages.add(OURS, world.thread, sent[:1], repetition)
    # Neither other names nor a time after the messages find them.
    later = RequestDigest("dialect:items_1%", since=at(3600))
    for digest in (RequestDigest("dialect:itemsx1y", since=now), later):
        other = await messages.add(OURS, world.thread, [a_message("three")], digest)
        assert other[0].id not in {one.id for one in first}


@pytest.mark.promise("P10")
async def test_nothing_is_appended_to_a_thread_whose_run_is_active(world: World) -> None:
    await world.records.runs.create(OURS, a_run(world.thread), None, ())
    with pytest.raises(ConversationBusyError):
        await world.records.messages.add(
            OURS, world.thread, [a_message("one")], RequestDigest("dialect:items-1")
        )
    assert len(await world.records.messages.history(OURS, world.thread)) == 1
