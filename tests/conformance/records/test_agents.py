from __future__ import annotations

import pytest

from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.events import StopReason
from reattach.domain.ids import new_agent_id, new_block_id
from reattach.records.base import (
    Agent,
    Span,
)
from reattach.records.records import Records
from tests.support.record_samples import (
    OURS,
    THEIRS,
    HandClock,
    World,
    a_block,
    a_settlement,
    a_system_message,
    an_agent,
    at,
    first,
    ids,
    last,
    setting,
)


async def test_a_created_agent_is_read_back_unchanged(records: Records) -> None:
    agent = an_agent(
        "Zoë O'Neil",
        created_at=at(0.000001),
        description="an agent",
        model="openai/gpt",
        model_settings={"temperature": 0.5, "big": 10**30},
        embedding="none",
        context_window_limit=32_000,
        timezone="UTC",
        hidden=True,
        metadata={"nested": {"ключ": [1, None, True, "☃"]}},
        tags=("b", "a"),
        blocks=(a_block("human", tags=("x",), metadata={"a": 1}), a_block("persona", limit=9)),
        settings={"tool_rules": []},
    )
    assert await records.agents.create(OURS, agent) == agent
    assert await records.agents.get(OURS, agent.id) == agent


async def test_existing_blocks_come_after_the_new_ones_of_an_agent(records: Records) -> None:
    shared = await records.blocks.create(OURS, a_block("shared"))
    own = a_block("own")
    agent = await records.agents.create(OURS, an_agent(blocks=(own,)), block_ids=[shared.id])
    assert agent.blocks == (own, shared)


async def test_an_agent_with_an_unknown_block_is_not_created(records: Records) -> None:
    agent = an_agent(blocks=(a_block(),))
    missing = new_block_id()
    with pytest.raises(NotFoundError, match=f"Block not found with id={missing}"):
        await records.agents.create(OURS, agent, block_ids=[missing])
    assert await records.agents.list(OURS, first()) == []
    assert await records.blocks.list(OURS, first()) == []


async def test_an_agent_cannot_have_two_blocks_with_one_label(records: Records) -> None:
    with pytest.raises(ConflictError, match="two blocks with the label 'human'"):
        await records.agents.create(OURS, an_agent(blocks=(a_block(), a_block())))
    assert await records.agents.list(OURS, first()) == []


async def test_an_agent_created_with_a_system_message_has_it_in_its_default_thread(
    records: Records,
) -> None:
    message = a_system_message()
    agent = await records.agents.create(OURS, an_agent(), system_message=message)
    found = await records.messages.list_of_agent(
        OURS, agent.id, Span(9, ascending=True), conversation_id="default"
    )
    assert found == [message]


async def test_an_unknown_agent_is_not_found(records: Records) -> None:
    unknown = new_agent_id()
    with pytest.raises(NotFoundError, match=f"^Agent with ID {unknown} not found$"):
        await records.agents.get(OURS, unknown)


async def test_a_second_agent_with_an_id_is_refused_without_revealing_sql(world: World) -> None:
    with pytest.raises(ConflictError) as refused:
        await world.records.agents.create(THEIRS, world.agent)
    assert "UNIQUE" not in refused.value.detail
    assert "agents" not in refused.value.detail


async def test_an_update_sets_only_the_named_fields(world: World, clock: HandClock) -> None:
    clock.time = at(60)
    agent = await world.records.agents.update(
        OURS, world.agent.id, setting(name="Bea", tags=("t",), description=None)
    )
    assert (agent.name, agent.tags, agent.system) == ("Bea", ("t",), world.agent.system)
    assert (agent.created_at, agent.updated_at) == (world.agent.created_at, at(60))
    assert await world.records.agents.get(OURS, agent.id) == agent


async def test_an_update_stores_a_value_that_only_python_holds_to_be_equal(world: World) -> None:
    agents, agent_id = world.records.agents, world.agent.id
    await agents.update(OURS, agent_id, setting(metadata={"n": 1}))
    changed = await agents.update(OURS, agent_id, setting(metadata={"n": True}))
    assert changed.metadata == {"n": True}
    assert changed.metadata["n"] is True


@pytest.mark.parametrize("name", ["id", "created_at", "blocks", "tenant", "no_field"])
async def test_an_update_of_a_fixed_or_unknown_field_is_refused(world: World, name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        await world.records.agents.update(OURS, world.agent.id, setting(**{name: "x"}))


@pytest.mark.promise("P11")
async def test_another_tenant_does_not_see_an_agent(world: World) -> None:
    agents, agent = world.records.agents, world.agent
    for call in (
        agents.get(THEIRS, agent.id),
        agents.update(THEIRS, agent.id, setting(name="x")),
        agents.delete(THEIRS, agent.id),
        agents.list(THEIRS, first(after=agent.id)),
        agents.list(THEIRS, first(before=agent.id)),
    ):
        with pytest.raises(NotFoundError, match=f"^Agent with ID {agent.id} not found$"):
            await call
    assert await agents.list(THEIRS, first()) == []
    assert await agents.get(OURS, agent.id) == agent


async def test_agents_are_filtered_by_name_text_tags_and_stop_reason(records: Records) -> None:
    async def create(name: str, *tags: str, reason: StopReason | None = None) -> Agent:
        return await records.agents.create(OURS, an_agent(name, tags=tags, last_stop_reason=reason))

    ada = await create("Ada", "x", "y", reason=StopReason.ERROR)
    bob = await create("Bob 100%", "x")
    cat = await create("cat")

    async def names(**filters: object) -> list[str]:
        found = await records.agents.list(OURS, first(), **filters)  # type: ignore[arg-type]
        return [agent.name for agent in found]

    assert await names() == [ada.name, bob.name, cat.name]
    assert await names(name="Ada") == [ada.name]
    assert await names(query_text="A") == [ada.name, cat.name]
    assert await names(query_text="0%") == [bob.name]
    assert await names(query_text="_") == []
    assert await names(tags=("y", "x")) == [ada.name, bob.name]
    assert await names(tags=("y", "x", "x"), match_all_tags=True) == [ada.name]
    assert await names(last_stop_reason=StopReason.ERROR) == [ada.name]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
@pytest.mark.parametrize("order_by", ["created_at", "last_run_completion"])
async def test_the_pages_contain_every_agent_once_in_both_directions(
    records: Records, ascending: bool, size: int, order_by: str
) -> None:
    moments = [at(1), at(0), at(1), at(1), at(2)]
    runs = [None, at(1), at(0), at(1), None]
    for created_at, completed_at in zip(moments, runs, strict=True):
        agent = an_agent(created_at=created_at, last_run_completion=completed_at)
        await records.agents.create(OURS, agent)
        await records.agents.create(THEIRS, an_agent(created_at=created_at))

    async def page(**cursor: str) -> list[Agent]:
        wanted = (first if ascending else last)(size, **cursor)
        return await records.agents.list(OURS, wanted, order_by=order_by)  # type: ignore[arg-type]

    walked = await page()
    while found := await page(after=walked[-1].id):
        walked += found
    values = [getattr(agent, order_by) for agent in walked]
    present = [value for value in values if value is not None]
    assert present == sorted(present, reverse=not ascending)
    assert values[len(present) :] == [None] * (5 - len(present))
    assert len(set(ids(walked))) == 5

    back = await page(before=walked[-1].id)
    while found := await page(before=back[0].id):
        back = found + back
    assert ids(back) == ids(walked[:-1])
    between = await page(after=walked[0].id, before=walked[4].id)
    assert ids(between) == ids(walked[1:4][:size])


async def test_both_directions_are_reverses_of_each_other_when_times_are_equal(
    records: Records,
) -> None:
    for _ in range(4):
        await records.agents.create(OURS, an_agent())
    up = ids(await records.agents.list(OURS, first()))
    assert ids(await records.agents.list(OURS, last())) == up[::-1]


async def test_an_unknown_cursor_is_not_found(records: Records) -> None:
    for page in (first(after="agent-x"), last(before="agent-x")):
        with pytest.raises(NotFoundError, match="agent-x"):
            await records.agents.list(OURS, page)


async def test_deleting_an_agent_deletes_all_its_rows_and_returns_its_logs(world: World) -> None:
    records, agent = world.records, world.agent
    block = await records.blocks.create(OURS, a_block())
    await records.blocks.attach(OURS, agent.id, block.id)
    run_id, messages = await world.turn("one", "two")
    gone_id, _ = await world.turn("three", thread=world.default)
    await records.runs.mark_log_deleted([gone_id], at(9))

    assert await records.agents.delete(OURS, agent.id) == [run_id]

    for call in (
        records.agents.get(OURS, agent.id),
        records.agents.delete(OURS, agent.id),
        records.conversations.get(OURS, world.conversation.id),
        records.runs.get(OURS, run_id),
        records.messages.get(OURS, messages[0].id),
        records.messages.get(OURS, world.system_message.id),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert await records.blocks.get(OURS, block.id) == block
    assert await records.runs.list_expired(at(-999), 10) == [run_id]
    await records.runs.mark_log_deleted([run_id], at(10))
    assert await records.runs.list_expired(at(999), 10) == []


async def test_an_agent_with_an_active_run_is_not_deleted(world: World) -> None:
    run = await world.start()
    with pytest.raises(ConflictError, match="Cancel it") as refused:
        await world.records.agents.delete(OURS, world.agent.id)
    assert refused.value.extra == {"run_id": run.id}
    assert await world.records.runs.get(OURS, run.id) == run
    assert await world.records.runs.settle(run.id, a_settlement())
    assert await world.records.agents.delete(OURS, world.agent.id) == [run.id]
