"""Blocks of memory, and the agents that they are attached to."""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    RowMapping,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.ids import AgentId, BlockId, TenantId
from reattach.records import lookup
from reattach.records.base import Block, Page
from reattach.records.changes import checked
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.paging import SortOrder, page_of

_FIELDS = tuple(field.name for field in fields(Block))
_FIXED = frozenset({"id", "created_at"})

_Owner = TypeVar("_Owner", bound=str)

_OF_OWNERS: Final = {
    owner: select(owner, schema.blocks)
    .join(schema.blocks, schema.blocks.c.id == owner.table.c.block_id)
    .where(owner.in_(bindparam("owner_ids", expanding=True)))
    .order_by(owner, owner.table.c.position)
    for owner in (schema.agent_blocks.c.agent_id, schema.conversation_blocks.c.conversation_id)
}


class Blocks:
    """The blocks of each tenant. One block may be attached to several agents."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, tenant: TenantId, block: Block) -> Block:
        async with self._database.write() as connection:
            await insert_blocks(connection, tenant, [block])
        return block

    async def get(self, tenant: TenantId, block_id: BlockId) -> Block:
        async with self._database.read() as connection:
            return block_of(
                await connection.run_sync(lookup.require, schema.blocks, tenant, block_id)
            )

    async def list(
        self,
        tenant: TenantId,
        page: Page,
        *,
        label: str | None = None,
        label_search: str | None = None,
        value_search: str | None = None,
        description_search: str | None = None,
    ) -> builtins.list[Block]:
        """Blocks as they were created. The searches look for a part of a text, in any case.

        Those that are hidden are left out.
        """
        table = schema.blocks
        rows = lookup.listed(table, tenant)
        if label is not None:
            rows = rows.where(table.c.label == label)
        searches = {
            table.c.label: label_search,
            table.c.value: value_search,
            table.c.description: description_search,
        }
        for column, wanted in searches.items():
            if wanted is not None:
                rows = rows.where(column.icontains(wanted, autoescape=True))
        order = SortOrder(table, table.c.created_at, page.ascending)
        async with self._database.read() as connection:
            return [block_of(row) for row in await page_of(connection, rows, tenant, page, order)]

    async def update(
        self, tenant: TenantId, block_id: BlockId, changes: Mapping[str, Any]
    ) -> Block:
        """Set the named fields and no others, and ``updated_at`` unless it is among them.

        Raises ConflictError if an agent of the block has another block with the new label.
        """
        values = checked(changes, _FIELDS, _FIXED, self._clock)
        table = schema.blocks
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, table, tenant, block_id)
            await connection.execute(update(table).where(table.c.id == block_id).values(values))
            if values.get("label") is not None:
                await _hold_agents_of(connection, block_id)
                await _refuse_double_labels(connection, block_id)
            return block_of(await connection.run_sync(lookup.require, table, tenant, block_id))

    async def delete(self, tenant: TenantId, block_id: BlockId) -> None:
        """Forget the block; its agents lose it."""
        table = schema.blocks
        async with self._database.write() as connection:
            await connection.run_sync(lookup.require, table, tenant, block_id)
            await connection.execute(delete(table).where(table.c.id == block_id))

    async def attach(self, tenant: TenantId, agent_id: AgentId, block_id: BlockId) -> None:
        """Give the block to the agent, after those it has; no-op if it has it.

        Raises ConflictError if the agent has another block of that label.
        """
        async with self._database.write() as connection:
            await connection.run_sync(lookup.require, schema.agents, tenant, agent_id)
            await connection.run_sync(lookup.hold, schema.blocks, tenant, block_id)
            await connection.run_sync(lookup.hold, schema.agents, tenant, agent_id)
            await attach_blocks(connection, agent_id, [block_id])

    async def detach(self, tenant: TenantId, agent_id: AgentId, block_id: BlockId) -> None:
        """Take the block from the agent. Raises NotFoundError if it is not the agent's."""
        table = schema.agent_blocks
        async with self._database.write() as connection:
            await connection.run_sync(lookup.require, schema.agents, tenant, agent_id)
            gone = await connection.execute(
                delete(table).where(table.c.agent_id == agent_id, table.c.block_id == block_id)
            )
            if not gone.rowcount:
                raise lookup.not_found(schema.blocks, block_id)

    async def get_by_label(self, tenant: TenantId, agent_id: AgentId, label: str) -> Block:
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require, schema.agents, tenant, agent_id)
            owner = schema.agent_blocks.c.agent_id
            found = await connection.run_sync(blocks_of, owner, [agent_id])
            blocks = found.get(agent_id, ())
        for block in blocks:
            if block.label == label:
                return block
        raise NotFoundError(f"Agent with ID {agent_id} has no block with the label {label!r}")


def block_of(row: RowMapping) -> Block:
    return Block(**{name: row[name] for name in _FIELDS})


async def insert_blocks(
    connection: AsyncConnection, tenant: TenantId, blocks: Sequence[Block]
) -> None:
    if blocks:
        rows = [
            {"tenant": tenant} | {name: getattr(block, name) for name in _FIELDS}
            for block in blocks
        ]
        await connection.execute(insert(schema.blocks), rows)


async def attach_blocks(
    connection: AsyncConnection, agent_id: AgentId, block_ids: Sequence[BlockId]
) -> None:
    """Attach blocks that are there, in order, after those that the agent has.

    The caller holds the blocks, and then the agent, so that no label comes in between.
    """
    table = schema.agent_blocks
    present = (
        await connection.execute(
            select(table.c.block_id, table.c.position).where(table.c.agent_id == agent_id)
        )
    ).all()
    known = {block_id for block_id, _ in present}
    first = max((position for _, position in present), default=0) + 1
    new = [block_id for block_id in dict.fromkeys(block_ids) if block_id not in known]
    if new:
        rows = [
            {"agent_id": agent_id, "block_id": block_id, "position": position}
            for position, block_id in enumerate(new, first)
        ]
        await connection.execute(insert(table), rows)
        await _refuse_double_labels(connection, *new)


def blocks_of(
    connection: Connection, owner: Column[str], owner_ids: Sequence[_Owner]
) -> dict[_Owner, tuple[Block, ...]]:
    """The blocks of each owner, in the order in which they were attached.

    ``owner`` is the column that names the owner, in a table of who has which block.
    """
    rows = connection.execute(_OF_OWNERS[owner], {"owner_ids": owner_ids})
    found: dict[_Owner, tuple[Block, ...]] = {}
    for row in rows.mappings():
        owner_id = row[owner]
        found[owner_id] = (*found.get(owner_id, ()), block_of(row))
    return found


async def _hold_agents_of(connection: AsyncConnection, block_id: BlockId) -> None:
    table = schema.agent_blocks
    agents = schema.agents.c.id
    owning = select(table.c.agent_id).where(table.c.block_id == block_id)
    await connection.execute(
        select(agents).where(agents.in_(owning)).order_by(agents).with_for_update()
    )


async def _refuse_double_labels(connection: AsyncConnection, *block_ids: BlockId) -> None:
    table = schema.agent_blocks
    label = schema.blocks.c.label
    touched = select(table.c.agent_id).where(table.c.block_id.in_(block_ids))
    double = await connection.execute(
        select(table.c.agent_id, label)
        .join(schema.blocks, schema.blocks.c.id == table.c.block_id)
        .where(table.c.agent_id.in_(touched), label.is_not(None))
        .group_by(table.c.agent_id, label)
        .having(func.count() > 1)
        .limit(1)
    )
    if (row := double.one_or_none()) is not None:
        raise ConflictError(
            f"Agent {row[0]} would have two blocks with the label {row[1]!r}. "
            "Give one of them another label, or detach it first."
        )
