"""Memory blocks and the agents that they are attached to."""

import builtins
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Final, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from reattach.domain.errors import ConflictError, NotFoundError
from reattach.domain.ids import AgentId, BlockId, TenantId
from reattach.records import lookup
from reattach.records.base import Block, Page
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Row, Steps, take_steps
from reattach.records.paging import SortOrder, page_of
from reattach.records.repository import Repository

_FIELDS = tuple(field.name for field in fields(Block))
_FIXED = frozenset({"id", "created_at"})

_Owner = TypeVar("_Owner", bound=str)

_OF_ALL: Final = {
    owner: select(owner, schema.blocks)
    .join(schema.blocks, schema.blocks.c.id == owner.table.c.block_id)
    .order_by(owner, owner.table.c.position)
    for owner in (schema.agent_blocks.c.agent_id, schema.conversation_blocks.c.conversation_id)
}
_OF_OWNERS: Final = {
    owner: rows.where(owner.in_(bindparam("owner_ids", expanding=True)))
    for owner, rows in _OF_ALL.items()
}
_OF_ONE: Final = {
    owner: PreparedStatement(rows.where(owner == bindparam("owner_id")))
    for owner, rows in _OF_ALL.items()
}


class Blocks(Repository):
    """The blocks of each tenant. One block may be attached to several agents."""

    async def create(self, tenant: TenantId, block: Block) -> Block:
        await self._database.in_write(insert_blocks, tenant, [block])
        return block

    async def get(self, tenant: TenantId, block_id: BlockId) -> Block:
        return await self._database.in_read(_get, tenant, block_id)

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
        """List blocks by their creation. A search matches a part of a text, in any case.

        Hidden blocks are left out.
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
        found = await self._database.in_read(page_of, rows, tenant, page, order)
        return [block_of(row) for row in found]

    async def update(
        self, tenant: TenantId, block_id: BlockId, change: Callable[[Block], Block]
    ) -> Block:
        """Replace the block by ``change(block)``, as ``Agents.update`` does.

        Raises ConflictError if an agent of the block has another block with the new label.
        """
        table = schema.blocks

        def write(connection: Connection) -> Block:
            lookup.lock(connection, table, tenant, block_id)
            block = _get(connection, tenant, block_id)
            values = self._changed_fields(block, change(block), _FIXED)
            connection.execute(update(table).where(table.c.id == block_id).values(values))
            if values.get("label") is not None:
                _lock_agents_of(connection, block_id)
                if (found := _duplicate_label(connection, [block_id])) is not None:
                    raise ConflictError(
                        f"Agent {found[0]} would have two blocks with the label {found[1]!r}.",
                        remedy="Give one of them another label, or detach it first.",
                    )
            return _get(connection, tenant, block_id)

        return await self._database.in_write(write)

    async def delete(self, tenant: TenantId, block_id: BlockId) -> None:
        """Delete the block and detach it from its agents."""
        table = schema.blocks

        def remove(connection: Connection) -> None:
            lookup.require(connection, table, tenant, block_id)
            connection.execute(delete(table).where(table.c.id == block_id))

        await self._database.in_write(remove)

    async def attach(self, tenant: TenantId, agent_id: AgentId, block_id: BlockId) -> None:
        """Attach the block to the agent, after its other blocks. Idempotent.

        Raises ConflictError if the agent has another block with the same label.
        """

        def write(connection: Connection) -> None:
            lookup.require(connection, schema.agents, tenant, agent_id)
            lookup.lock(connection, schema.blocks, tenant, block_id)
            lookup.lock(connection, schema.agents, tenant, agent_id)
            attach_blocks(connection, agent_id, [block_id])

        await self._database.in_write(write)

    async def detach(self, tenant: TenantId, agent_id: AgentId, block_id: BlockId) -> None:
        """Detach the block. Raises NotFoundError if it is not attached to the agent."""
        table = schema.agent_blocks
        removal = delete(table).where(table.c.agent_id == agent_id, table.c.block_id == block_id)

        def write(connection: Connection) -> None:
            lookup.require(connection, schema.agents, tenant, agent_id)
            if not connection.execute(removal).rowcount:
                raise lookup.not_found(schema.blocks, block_id)

        await self._database.in_write(write)

    async def get_by_label(self, tenant: TenantId, agent_id: AgentId, label: str) -> Block:
        owner = schema.agent_blocks.c.agent_id

        def read(connection: Connection) -> Sequence[Block]:
            lookup.require(connection, schema.agents, tenant, agent_id)
            return blocks_of(connection, owner, [agent_id]).get(agent_id, ())

        for block in await self._database.in_read(read):
            if block.label == label:
                return block
        raise NotFoundError(f"Agent with ID {agent_id} has no block with the label {label!r}")


def _get(connection: Connection, tenant: TenantId, block_id: BlockId) -> Block:
    return block_of(lookup.require(connection, schema.blocks, tenant, block_id))


def block_of(row: Row) -> Block:
    return Block(**{name: row[name] for name in _FIELDS})


def insert_blocks(connection: Connection, tenant: TenantId, blocks: Sequence[Block]) -> None:
    if blocks:
        rows = [
            {"tenant": tenant} | {name: getattr(block, name) for name in _FIELDS}
            for block in blocks
        ]
        connection.execute(insert(schema.blocks), rows)


def attach_blocks(connection: Connection, agent_id: AgentId, block_ids: Sequence[BlockId]) -> None:
    """Attach existing blocks, in order, after those that the agent has.

    The caller has locked the blocks and then the agent, so no label can change meanwhile.
    """
    table = schema.agent_blocks
    present = connection.execute(
        select(table.c.block_id, table.c.position).where(table.c.agent_id == agent_id)
    ).all()
    known = {block_id for block_id, _ in present}
    first = max((position for _, position in present), default=0) + 1
    new = [block_id for block_id in dict.fromkeys(block_ids) if block_id not in known]
    if new:
        rows = [
            {"agent_id": agent_id, "block_id": block_id, "position": position}
            for position, block_id in enumerate(new, first)
        ]
        connection.execute(insert(table), rows)
        if (found := _duplicate_label(connection, new)) is not None:
            raise ConflictError(
                f"The agent would have two blocks with the label {found[1]!r}.",
                remedy="Give one of them another label, or leave one out.",
            )


def blocks_of(
    connection: Connection, owner: Column[str], owner_ids: Sequence[_Owner]
) -> dict[_Owner, tuple[Block, ...]]:
    """Return the blocks of each owner, in the order in which they were attached.

    ``owner`` is the owner's column in the table that assigns blocks to owners.
    """
    if len(owner_ids) == 1:
        return take_steps(connection, blocks_of_one(connection, owner, owner_ids[0]))
    return _by_owner(
        owner, connection.execute(_OF_OWNERS[owner], {"owner_ids": owner_ids}).mappings()
    )


def blocks_of_one(
    connection: Connection, owner: Column[str], owner_id: _Owner
) -> Steps[dict[_Owner, tuple[Block, ...]]]:
    """Return the same for one owner."""
    (rows,) = yield [(_OF_ONE[owner], {"owner_id": owner_id})]
    return _by_owner(owner, _OF_ONE[owner].named(connection, rows))


def _by_owner(owner: Column[str], rows: Iterable[Row]) -> dict[_Owner, tuple[Block, ...]]:
    found: dict[_Owner, tuple[Block, ...]] = {}
    for row in rows:
        owner_id = row[owner.name]
        found[owner_id] = (*found.get(owner_id, ()), block_of(row))
    return found


def _lock_agents_of(connection: Connection, block_id: BlockId) -> None:
    table = schema.agent_blocks
    agents = schema.agents.c.id
    owning = select(table.c.agent_id).where(table.c.block_id == block_id)
    connection.execute(select(agents).where(agents.in_(owning)).order_by(agents).with_for_update())


def _duplicate_label(
    connection: Connection, block_ids: Sequence[BlockId]
) -> tuple[AgentId, str] | None:
    """Return an agent of these blocks that has two with one label, and the label."""
    table = schema.agent_blocks
    label = schema.blocks.c.label
    touched = select(table.c.agent_id).where(table.c.block_id.in_(block_ids))
    duplicate = connection.execute(
        select(table.c.agent_id, label)
        .join(schema.blocks, schema.blocks.c.id == table.c.block_id)
        .where(table.c.agent_id.in_(touched), label.is_not(None))
        .group_by(table.c.agent_id, label)
        .having(func.count() > 1)
        .limit(1)
    )
    row = duplicate.one_or_none()
    return None if row is None else (row[0], row[1])
