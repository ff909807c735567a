"""Agents, with their blocks and tags."""

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Literal

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from reattach.domain.errors import ConflictError
from reattach.domain.events import StopReason
from reattach.domain.ids import AgentId, BlockId, MessageId, RunId, TenantId
from reattach.domain.messages import Message
from reattach.records import lookup, threads
from reattach.records.audit_log import Action, note
from reattach.records.base import Actor, Agent, Block, Page, Thread
from reattach.records.blocks import attach_blocks, blocks_of, blocks_of_one, insert_blocks
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Row, Rows, Steps, take_steps
from reattach.records.paging import SortOrder, page_of
from reattach.records.repository import Repository
from reattach.records.tokens.tokens import revoke_of_agent

_COLUMNS = tuple(field.name for field in fields(Agent) if field.name in schema.agents.c)
_FIXED = frozenset({"id", "created_at", "blocks"})

_tags: Final = schema.agent_tags
_all_tags: Final = select(_tags.c.agent_id, _tags.c.tag).order_by(
    _tags.c.agent_id, _tags.c.position
)
_TAGS: Final = _all_tags.where(_tags.c.agent_id.in_(bindparam("agent_ids", expanding=True)))
_TAGS_OF_ONE: Final = PreparedStatement(_all_tags.where(_tags.c.agent_id == bindparam("agent_id")))

_OWNER: Final = schema.agent_blocks.c.agent_id
_has_blocks = exists().where(schema.agents.c.id == _OWNER)
_has_tags = exists().where(_tags.c.agent_id == schema.agents.c.id)
_ONE: Final = PreparedStatement(
    lookup.by_id(schema.agents).add_columns(
        _has_blocks.label("has_blocks"), _has_tags.label("has_tags")
    )
)

OF_CONVERSATION: Final = PreparedStatement(
    lookup.owned(schema.agents, bindparam("tenant"))
    .where(
        schema.agents.c.id
        == select(schema.conversations.c.agent_id)
        .where(schema.conversations.c.id == bindparam("row_id"))
        .scalar_subquery()
    )
    .add_columns(_has_blocks.label("has_blocks"), _has_tags.label("has_tags"))
)
"""The row of the agent of the conversation ``row_id``: see ``agent_of_row``."""

AgentOrder = Literal["created_at", "updated_at", "last_run_completion"]


class Agents(Repository):
    """The agents of each tenant."""

    async def create(
        self,
        tenant: TenantId,
        agent: Agent,
        *,
        block_ids: Sequence[BlockId] = (),
        system_message: Message | None = None,
    ) -> Agent:
        """Create the agent with its blocks and return it with all of them.

        The blocks of ``agent`` are created; the existing ones of ``block_ids`` come after them.
        ``system_message`` is the first message of the agent's default thread.

        Raises:
            NotFoundError: A block of ``block_ids`` does not exist.
            ConflictError: Two blocks have the same label.
        """

        def create(connection: Connection) -> Agent:
            lookup.lock(connection, schema.blocks, tenant, *block_ids)
            values = {name: getattr(agent, name) for name in _COLUMNS}
            connection.execute(insert(schema.agents), {"tenant": tenant, **values})
            _set_tags(connection, agent.id, agent.tags)
            insert_blocks(connection, tenant, agent.blocks)
            new_ids = [block.id for block in agent.blocks]
            attach_blocks(connection, agent.id, [*new_ids, *block_ids])
            if system_message is not None:
                thread = Thread(agent.id, None)
                threads.put_system(connection, tenant, thread, system_message)
            return take_steps(connection, agent_of(connection, tenant, agent.id))

        return await self._database.in_write(create)

    async def get(self, tenant: TenantId, agent_id: AgentId) -> Agent:
        return await self._database.in_short_read(agent_of, tenant, agent_id)

    async def with_message_ids(
        self, tenant: TenantId, agent_id: AgentId
    ) -> tuple[Agent, builtins.list[MessageId]]:
        """Return the agent and the ids of the messages in context of its default thread."""
        agent, ids = await self._database.in_short_read(_with_message_ids, tenant, agent_id)
        if ids is None:
            ids = await self._database.in_read(threads.message_ids, agent_id)
        return agent, ids

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
        """List agents with any of the tags, or with all; ``query_text`` is a part of their name.

        Sorted by ``last_run_completion``, agents that never completed a run come last in both
        directions. Hidden agents are left out.
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
            rows = rows.where(table.c.id.in_(_with_tags(wanted, least)))
        order = SortOrder(table, table.c[order_by], page.ascending)

        def read(connection: Connection) -> builtins.list[Agent]:
            return agents_of(connection, page_of(connection, rows, tenant, page, order))

        return await self._database.in_read(read)

    async def update(
        self,
        tenant: TenantId,
        agent_id: AgentId,
        change: Callable[[Agent], Agent],
        *,
        block_ids: Sequence[BlockId] | None = None,
    ) -> Agent:
        """Replace the agent by ``change(agent)``, with ``updated_at`` as now unless it sets that.

        The agent is locked meanwhile. ``change`` is called in a thread; if it raises, nothing
        changes. ``block_ids`` replaces the blocks of the agent, in this order.

        Raises:
            ValueError: ``change`` replaces the id, ``created_at`` or the blocks.
            NotFoundError: The agent or a block does not exist.
            ConflictError: Two blocks have the same label.
        """
        table = schema.agents

        def write(connection: Connection) -> Agent:
            lookup.require(connection, table, tenant, agent_id)
            lookup.lock(connection, schema.blocks, tenant, *(block_ids or ()))
            lookup.lock(connection, table, tenant, agent_id)
            agent = take_steps(connection, agent_of(connection, tenant, agent_id))
            values = self._changed_fields(agent, change(agent), _FIXED)
            tags = values.pop("tags", None)
            connection.execute(update(table).where(table.c.id == agent_id).values(values))
            if tags is not None:
                _set_tags(connection, agent_id, tags)
            if block_ids is not None:
                _set_blocks(connection, agent_id, block_ids)
            return take_steps(connection, agent_of(connection, tenant, agent_id))

        return await self._database.in_write(write)

    async def delete(
        self, tenant: TenantId, agent_id: AgentId, *, by: Actor | None = None
    ) -> builtins.list[RunId]:
        """Delete the agent with its conversations, messages and runs; its blocks stay.

        Returns the runs whose logs the caller has to delete. ``Runs.list_expired`` names them too,
        until ``Runs.mark_log_deleted`` is called. Raises ConflictError while a run is active.
        """
        runs = schema.runs
        abandoned = schema.abandoned_logs

        def delete_all(connection: Connection) -> builtins.list[RunId]:
            lookup.lock(connection, schema.agents, tenant, agent_id)
            of_agent = runs.c.agent_id == agent_id
            active = connection.scalar(select(runs.c.id).where(of_agent, schema.ACTIVE).limit(1))
            if active is not None:
                raise ConflictError(
                    f"Agent {agent_id} has an active run (run_id={active}). "
                    "Cancel it, wait for its end, then delete the agent.",
                    run_id=active,
                )
            kept = connection.scalars(select(runs.c.id).where(of_agent, schema.LOG_KEPT))
            run_ids = [RunId(run_id) for run_id in kept]
            now = self._clock.now()
            if run_ids:
                rows = [{"run_id": run_id, "abandoned_at": now} for run_id in run_ids]
                connection.execute(insert(abandoned), rows)
            revoke_of_agent(connection, agent_id, now)
            note(connection, by, Action.AGENT_DELETED, now, tenant=tenant, subject=agent_id)
            connection.execute(delete(schema.agents).where(schema.agents.c.id == agent_id))
            return run_ids

        return await self._database.in_write(delete_all)


def agent_of(connection: Connection, tenant: TenantId, agent_id: AgentId) -> Steps[Agent]:
    """Return the agent with its blocks and tags. Raises NotFoundError."""
    row = yield from lookup.required(connection, schema.agents, tenant, agent_id, _ONE)
    return (yield from agent_of_row(connection, row))


def _with_message_ids(
    connection: Connection, tenant: TenantId, agent_id: AgentId
) -> Steps[tuple[Agent, list[MessageId] | None]]:
    agent = yield from agent_of(connection, tenant, agent_id)
    return agent, (yield from threads.message_ids_if_few(agent_id))


def agent_of_row(connection: Connection, row: Row) -> Steps[Agent]:
    """Return the agent of a row that says whether it has blocks and tags, with these."""
    tags: Rows = ()
    blocks: Mapping[AgentId, tuple[Block, ...]] = {}
    if row["has_tags"]:
        (tags,) = yield [(_TAGS_OF_ONE, {"agent_id": row["id"]})]
    if row["has_blocks"]:
        blocks = yield from blocks_of_one(connection, _OWNER, row["id"])
    return _agents([row], tags, blocks)[0]


def agents_of(connection: Connection, rows: Sequence[Row]) -> list[Agent]:
    """Return the agents of the rows, with one query for all tags and one for all blocks."""
    if not rows:
        return []
    agent_ids = [row["id"] for row in rows]
    return _agents(rows, _tags_of(connection, agent_ids), blocks_of(connection, _OWNER, agent_ids))


def _agents(
    rows: Sequence[Row],
    tags: Iterable[Sequence[Any]],
    blocks: Mapping[AgentId, tuple[Block, ...]],
) -> list[Agent]:
    """Return the agents of the rows; ``tags`` are pairs of an agent's id and a tag, in order."""
    tags_of: dict[AgentId, list[str]] = {}
    for agent_id, tag in tags:
        tags_of.setdefault(agent_id, []).append(tag)
    return [
        Agent(
            **{name: row[name] for name in _COLUMNS},
            tags=tuple(tags_of.get(row["id"], ())),
            blocks=blocks.get(row["id"], ()),
        )
        for row in rows
    ]


def _tags_of(connection: Connection, agent_ids: Sequence[AgentId]) -> Iterable[Sequence[Any]]:
    if len(agent_ids) == 1:
        return _TAGS_OF_ONE.rows(connection, {"agent_id": agent_ids[0]})
    return connection.execute(_TAGS, {"agent_ids": agent_ids})


def _set_tags(connection: Connection, agent_id: AgentId, tags: Sequence[str]) -> None:
    table = schema.agent_tags
    connection.execute(delete(table).where(table.c.agent_id == agent_id))
    rows = [
        {"agent_id": agent_id, "position": position, "tag": tag}
        for position, tag in enumerate(tags)
    ]
    if rows:
        connection.execute(insert(table), rows)


def _set_blocks(connection: Connection, agent_id: AgentId, block_ids: Sequence[BlockId]) -> None:
    table = schema.agent_blocks
    connection.execute(delete(table).where(table.c.agent_id == agent_id))
    attach_blocks(connection, agent_id, block_ids)


def _with_tags(tags: set[str], least: int) -> Select[Any]:
    table = schema.agent_tags
    return (
        select(table.c.agent_id)
        .where(table.c.tag.in_(tags))
        .group_by(table.c.agent_id)
        .having(func.count(table.c.tag.distinct()) >= least)
    )
