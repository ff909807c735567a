from __future__ import annotations

import pytest

from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.ids import new_block_id
from reattach.records.records import Records
from tests.support.record_samples import (
    OURS,
    THEIRS,
    HandClock,
    World,
    a_block,
    an_agent,
    at,
    first,
    ids,
    last,
    setting,
)


async def test_a_block_is_read_back_as_it_was_created_and_changed(
    records: Records, clock: HandClock
) -> None:
    block = a_block(description="who", limit=5000, read_only=True, hidden=False, tags=("a", "b"))
    assert await records.blocks.create(OURS, block) == block
    assert await records.blocks.get(OURS, block.id) == block
    clock.time = at(1)
    changed = await records.blocks.update(OURS, block.id, setting(value="", metadata={"k": []}))
    assert (changed.value, changed.metadata, changed.updated_at) == ("", {"k": []}, at(1))
    assert changed.description == "who"
    assert await records.blocks.get(OURS, block.id) == changed
    await records.blocks.delete(OURS, block.id)
    with pytest.raises(NotFoundError, match=f"^Block not found with id={block.id}$"):
        await records.blocks.get(OURS, block.id)


async def test_blocks_are_listed_by_label_and_by_parts_of_their_texts(records: Records) -> None:
    human = await records.blocks.create(OURS, a_block("human", value="Likes TEA"))
    persona = await records.blocks.create(OURS, a_block("persona", description="what it is"))
    bare = await records.blocks.create(OURS, a_block(None, value=""))

    async def found(**filters: str) -> list[str]:
        return ids(await records.blocks.list(OURS, first(), **filters))

    assert await found() == [human.id, persona.id, bare.id]
    assert ids(await records.blocks.list(OURS, last(1))) == [bare.id]
    assert await found(label="human") == [human.id]
    assert await found(label_search="RSO") == [persona.id]
    assert await found(value_search="tea") == [human.id, persona.id]
    assert await found(description_search="it is") == [persona.id]


async def test_blocks_are_attached_in_order_and_detached(world: World) -> None:
    blocks, agent_id = world.records.blocks, world.agent.id
    b, a = [await blocks.create(OURS, a_block(label)) for label in ("b", "a")]
    for block in (b, a, b):
        await blocks.attach(OURS, agent_id, block.id)
    assert (await world.records.agents.get(OURS, agent_id)).blocks == (b, a)
    assert await blocks.get_by_label(OURS, agent_id, "a") == a
    await blocks.detach(OURS, agent_id, b.id)
    assert (await world.records.agents.get(OURS, agent_id)).blocks == (a,)
    with pytest.raises(NotFoundError):
        await blocks.detach(OURS, agent_id, b.id)
    with pytest.raises(NotFoundError, match="no block with the label 'b'"):
        await blocks.get_by_label(OURS, agent_id, "b")
    assert await blocks.get(OURS, b.id) == b


async def test_a_shared_block_is_changed_and_deleted_for_all_its_agents(
    records: Records,
) -> None:
    block = await records.blocks.create(OURS, a_block())
    agents = [await records.agents.create(OURS, an_agent(), block_ids=[block.id]) for _ in range(2)]
    changed = await records.blocks.update(OURS, block.id, setting(value="new"))
    for agent in agents:
        assert (await records.agents.get(OURS, agent.id)).blocks == (changed,)
    await records.blocks.delete(OURS, block.id)
    for agent in agents:
        assert (await records.agents.get(OURS, agent.id)).blocks == ()


async def test_no_method_gives_an_agent_two_blocks_with_one_label(world: World) -> None:
    blocks, agent_id = world.records.blocks, world.agent.id
    human = await blocks.create(OURS, a_block("human"))
    second = await blocks.create(OURS, a_block("human"))
    third = await blocks.create(OURS, a_block("persona"))
    await blocks.attach(OURS, agent_id, human.id)
    await blocks.attach(OURS, agent_id, third.id)
    with pytest.raises(ConflictError, match="human"):
        await blocks.attach(OURS, agent_id, second.id)
    with pytest.raises(ConflictError, match="human"):
        await blocks.update(OURS, third.id, setting(label="human"))
    assert (await world.records.agents.get(OURS, agent_id)).blocks == (human, third)


@pytest.mark.promise("P11")
async def test_another_tenant_neither_sees_nor_attaches_a_block(world: World) -> None:
    blocks = world.records.blocks
    ours = await blocks.create(OURS, a_block("ours"))
    theirs = await blocks.create(THEIRS, a_block("theirs"))
    their_agent = await world.records.agents.create(THEIRS, an_agent())
    for call in (
        blocks.get(THEIRS, ours.id),
        blocks.update(THEIRS, ours.id, setting(value="x")),
        blocks.delete(THEIRS, ours.id),
        blocks.attach(THEIRS, their_agent.id, ours.id),
        blocks.attach(THEIRS, world.agent.id, theirs.id),
        blocks.detach(THEIRS, world.agent.id, ours.id),
        blocks.get_by_label(THEIRS, world.agent.id, "ours"),
        blocks.list(THEIRS, first(after=ours.id)),
        blocks.get(THEIRS, new_block_id()),
        world.records.agents.create(THEIRS, an_agent(), block_ids=[ours.id]),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert ids(await blocks.list(THEIRS, first())) == [theirs.id]
    assert await blocks.get(OURS, ours.id) == ours
