"""Agents, with their blocks and tags."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final, Literal

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError
from reattach.domain.events import StopReason
from reattach.domain.ids import AgentId, BlockId, RunId, TenantId
from reattach.domain.messages import Message
from reattach.records import lookup, threads
from reattach.records.base import Agent, JsonObject, Page, Thread
from reattach.records.blocks import attach_blocks, blocks_of, insert_blocks
from reattach.records.changes import checked
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.paging import SortOrder, page_of

_FIELDS = tuple(field.name for field in fields(Agent))
_COLUMNS = tuple(name for name in _FIELDS if name in schema.agents.c)
_FIXED = frozenset({"id", "created_at", "blocks"})

_tags: Final = schema.agent_tags
_TAGS: Final = (
    select(_tags.c.agent_id, _tags.c.tag)
    .where(_tags.c.agent_id.in_(bindparam("agent_ids", expanding=True)))
    .order_by(_tags.c.agent_id, _tags.c.position)
)

AgentOrder = Literal["created_at", "updated_at", "last_run_completion"]


class Agents:
    """The agents of each tenant."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        tenant: TenantId,
        agent: Agent,
        *,
        block_ids: Sequence[BlockId] = (),
        system_message: Message | None = None,
    ) -> Agent:
        """Create the agent with its blocks, all or nothing, and return it with all its blocks.

        The blocks of ``agent`` are new; those of ``block_ids`` exist, and come after them.
        ``system_message`` begins its default thread. Raises NotFoundError for a block that is
        not there, ConflictError for two blocks with one label.
        """
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, schema.blocks, tenant, *block_ids)
            values = {name: getattr(agent, name) for name in _COLUMNS}
            await connection.execute(insert(schema.agents), {"tenant": tenant, **values})
            await _set_tags(connection, agent.id, agent.tags)
            await insert_blocks(connection, tenant, agent.blocks)
            new_ids = [block.id for block in agent.blocks]
            await attach_blocks(connection, agent.id, [*new_ids, *block_ids])
            if system_message is not None:
                thread = Thread(agent.id, None)
                await connection.run_sync(threads.put_system, tenant, thread, system_message)
            return await connection.run_sync(agent_of, tenant, agent.id)

    async def get(self, tenant: TenantId, agent_id: AgentId) -> Agent:
        return await self._database.in_read(agent_of, tenant, agent_id)

    async def list(
        self,
        tenant: TenantId,
        page: Page,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        match_all_tags: bool = False,
        query_text: str | None = None,
        order_by: AgentOrder = "created_at",
        last_stop_reason: StopReason | None = None,
    ) -> builtins.list[Agent]:
        """Agents with any of the tags, or with all; ``query_text`` is a part of their name.

        Those that never completed a run are last by ``last_run_completion``, in both orders.
        Those that are hidden are left out.
        """
        table = schema.agents
        rows = lookup.listed(table, tenant)
        if name is not None:
            rows = rows.where(table.c.name == name)
        if query_text is not None:
            rows = rows.where(table.c.name.icontains(query_text, autoescape=True))
        if last_stop_reason is not None:
            rows = rows.where(table.c.last_stop_reason == last_stop_reason)
        if tags:
            wanted = set(tags)
            least = len(wanted) if match_all_tags else 1
            rows = rows.where(table.c.id.in_(_tagged(wanted, least)))
        order = SortOrder(table, table.c[order_by], page.ascending)
        async with self._database.read() as connection:
            found = await page_of(connection, rows, tenant, page, order)
            return await connection.run_sync(_completed, found)

    async def update(
        self,
        tenant: TenantId,
        agent_id: AgentId,
        changes: Mapping[str, Any],
        *,
        block_ids: Sequence[BlockId] | None = None,
    ) -> Agent:
        """Set the named fields and no others, and ``updated_at`` unless it is among them.

        With ``block_ids`` the agent has these blocks, in this order, and no others. All of it or
        nothing. Raises ValueError for other names, NotFoundError for a block that is not there,
        ConflictError for two blocks with one label.
        """
        values = checked(changes, _FIELDS, _FIXED, self._clock)
        tags = values.pop("tags", None)
        table = schema.agents
        async with self._database.write() as connection:
            await connection.run_sync(lookup.require, table, tenant, agent_id)
            await connection.run_sync(lookup.hold, schema.blocks, tenant, *(block_ids or ()))
            await connection.execute(update(table).where(table.c.id == agent_id).values(values))
            if tags is not None:
                await _set_tags(connection, agent_id, tags)
            if block_ids is not None:
                await _set_blocks(connection, agent_id, block_ids)
            return await connection.run_sync(agent_of, tenant, agent_id)

    async def change_settings(
        self,
        tenant: TenantId,
        agent_id: AgentId,
        change: Callable[[JsonObject], JsonObject],
    ) -> Agent:
        """Set the settings to what ``change`` makes of them; nobody else changes them meanwhile.

        ``change`` may be called again, and what it raises leaves them as they are.
        """
        table = schema.agents
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, table, tenant, agent_id)
            row = await connection.run_sync(lookup.require, table, tenant, agent_id)
            values = {"settings": change(row["settings"]), "updated_at": self._clock.now()}
            await connection.execute(update(table).where(table.c.id == agent_id).values(values))
            return await connection.run_sync(agent_of, tenant, agent_id)

    async def delete(self, tenant: TenantId, agent_id: AgentId) -> builtins.list[RunId]:
        """Forget the agent, its conversations, messages and runs; blocks stay.

        Returns the runs whose logs are to be deleted now. ``Runs.expired`` names them too until
        ``Runs.mark_log_deleted`` is told. Raises ConflictError while a run of it is active.
        """
        runs = schema.runs
        abandoned = schema.abandoned_logs
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, schema.agents, tenant, agent_id)
            of_agent = runs.c.agent_id == agent_id
            active = await connection.scalar(
                select(runs.c.id).where(of_agent, schema.ACTIVE).limit(1)
            )
            if active is not None:
                raise ConflictError(
                    f"Agent {agent_id} has an active run (run_id={active}). "
                    "Cancel it and wait for its end, then delete the agent.",
                    run_id=active,
                )
            kept = await connection.scalars(select(runs.c.id).where(of_agent, schema.LOG_KEPT))
            run_ids = [RunId(run_id) for run_id in kept]
            if run_ids:
                now = self._clock.now()
                rows = [{"run_id": run_id, "abandoned_at": now} for run_id in run_ids]
                await connection.execute(insert(abandoned), rows)
            await connection.execute(delete(schema.agents).where(schema.agents.c.id == agent_id))
        return run_ids


def agent_of(connection: Connection, tenant: TenantId, agent_id: AgentId) -> Agent:
    """The agent with its blocks and tags. Raises NotFoundError."""
    row = lookup.require(connection, schema.agents, tenant, agent_id)
    return _completed(connection, [row])[0]


def _completed(connection: Connection, rows: Sequence[RowMapping]) -> list[Agent]:
    """The agents of the rows with their tags and blocks, by one query each."""
    if not rows:
        return []
    agents = [Agent(**{name: row[name] for name in _COLUMNS}) for row in rows]
    agent_ids = [agent.id for agent in agents]
    blocks = blocks_of(connection, schema.agent_blocks.c.agent_id, agent_ids)
    tags: dict[AgentId, list[str]] = {agent_id: [] for agent_id in agent_ids}
    found = connection.execute(_TAGS, {"agent_ids": agent_ids})
    for agent_id, tag in found:
        tags[agent_id].append(tag)
    return [
        replace(agent, tags=tuple(tags[agent.id]), blocks=blocks.get(agent.id, ()))
        for agent in agents
    ]


async def _set_tags(connection: AsyncConnection, agent_id: AgentId, tags: Sequence[str]) -> None:
    table = schema.agent_tags
    await connection.execute(delete(table).where(table.c.agent_id == agent_id))
    rows = [
        {"agent_id": agent_id, "position": position, "tag": tag}
        for position, tag in enumerate(tags)
    ]
    if rows:
        await connection.execute(insert(table), rows)


async def _set_blocks(
    connection: AsyncConnection, agent_id: AgentId, block_ids: Sequence[BlockId]
) -> None:
    table = schema.agent_blocks
    await connection.execute(delete(table).where(table.c.agent_id == agent_id))
    await attach_blocks(connection, agent_id, block_ids)


def _tagged(tags: set[str], least: int) -> Select[Any]:
    table = schema.agent_tags
    return (
        select(table.c.agent_id)
        .where(table.c.tag.in_(tags))
        .group_by(table.c.agent_id)
        .having(func.count(table.c.tag.distinct()) >= least)
    )
