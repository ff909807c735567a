"""Named conversations."""

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, case, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.clock import Clock
from reattach.domain.context import ids_in_context
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import AgentId, ConversationId, MessageId, TenantId
from reattach.domain.messages import Message, Role, SummaryPart
from reattach.records import lookup, threads
from reattach.records.agents import agent_of
from reattach.records.base import Agent, Block, Conversation, Page, Thread
from reattach.records.blocks import blocks_of, insert_blocks
from reattach.records.changes import checked
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.paging import SortOrder, page_of

_FIELDS = tuple(field.name for field in fields(Conversation) if field.name != "isolated_blocks")
_FIXED = frozenset({"id", "agent_id", "created_at"})
_ISOLATED_OWNER = schema.conversation_blocks.c.conversation_id

ConversationOrder = Literal["created_at", "last_run_completion", "last_message_at"]
ArchiveStatus = Literal["unarchived", "archived", "all"]


class Conversations:
    """The conversations of each tenant. A deleted one is as none; its runs can still be found."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self, tenant: TenantId, conversation: Conversation, system_message: Message
    ) -> Conversation:
        """Create it with its first message. Raises NotFoundError for an unknown agent."""
        async with self._database.write() as connection:
            agent_id = conversation.agent_id
            if await connection.run_sync(lookup.find, schema.agents, tenant, agent_id) is None:
                raise NotFoundError("Agent not found")
            await _insert(connection, tenant, conversation, system_message)
        return conversation

    async def get(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation:
        return await self._database.in_read(_get, tenant, conversation_id)

    async def with_agent(
        self, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, Agent]:
        """The conversation and the agent that it belongs to."""
        return await self._database.in_read(_with_agent, tenant, conversation_id)

    async def list(
        self,
        tenant: TenantId,
        page: Page,
        *,
        agent_id: AgentId | None = None,
        summary_search: str | None = None,
        order_by: ConversationOrder = "created_at",
        archive_status: ArchiveStatus = "unarchived",
    ) -> builtins.list[Conversation]:
        """Conversations whose summary has ``summary_search`` as a part, in any case.

        Those that have no value to order by are last, in both orders. Those
        that are hidden are left out.
        """
        table = schema.conversations
        rows = lookup.listed(table, tenant)
        if agent_id is not None:
            rows = rows.where(table.c.agent_id == agent_id)
        if summary_search is not None:
            rows = rows.where(table.c.summary.icontains(summary_search, autoescape=True))
        if archive_status == "unarchived":
            rows = rows.where(table.c.archived_at.is_(None))
        elif archive_status == "archived":
            rows = rows.where(table.c.archived_at.is_not(None))
        order = SortOrder(table, table.c[order_by], page.ascending)
        async with self._database.read() as connection:
            found = await page_of(connection, rows, tenant, page, order)
            isolated = await connection.run_sync(
                blocks_of, _ISOLATED_OWNER, [row["id"] for row in found]
            )
            return [_conversation(row, isolated) for row in found]

    async def update(
        self, tenant: TenantId, conversation_id: ConversationId, changes: Mapping[str, Any]
    ) -> Conversation:
        """Set the named fields and no others, and ``updated_at`` unless it is among them.

        Raises ValueError for the name of a field that never changes.
        """
        values = checked(changes, _FIELDS, _FIXED, self._clock)
        async with self._database.write() as connection:
            await _set(connection, tenant, conversation_id, values)
            return await connection.run_sync(_get, tenant, conversation_id)

    async def delete(self, tenant: TenantId, conversation_id: ConversationId) -> None:
        """Make it unknown, with an active run or without. A run of it goes on to its end."""
        values = {"deleted_at": self._clock.now()}
        async with self._database.write() as connection:
            await _set(connection, tenant, conversation_id, values)

    async def forget_deleted(self, limit: int) -> int:
        """Forget the messages of deleted conversations and the inputs of their runs.

        At most ``limit`` conversations, of all tenants; returns how many. What is to be told of a
        run that is active, or whose callback is due, is kept until then.
        """
        return await self._database.in_write(_forget_deleted, limit)

    async def fork(
        self,
        tenant: TenantId,
        source: Thread,
        new: Conversation,
        system_message: Message,
        *,
        up_to: MessageId | None,
    ) -> Conversation:
        """Create ``new`` with the messages of ``source``, but with a system message of its own.

        The messages are the same ones, up to and including ``up_to``. ``new`` belongs to the
        agent of ``source``. Raises NotFoundError for an unknown thread or message.
        """
        if new.agent_id != source.agent_id:
            raise ValueError(f"A fork stays with its agent {source.agent_id}, not {new.agent_id}")
        async with self._database.write() as connection:
            await connection.run_sync(lookup.require_thread, tenant, source)
            await _insert(connection, tenant, new, system_message)
            await connection.run_sync(
                threads.copy_places, source, Thread(new.agent_id, new.id), up_to
            )
        return new

    async def message_ids(self, tenant: TenantId, thread: Thread) -> builtins.list[MessageId]:
        """The messages that are in context, in order; the system message is the first."""
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require_thread, tenant, thread)
            return (await _message_ids(connection, [thread.key])).get(thread.key, [])

    async def message_ids_of(
        self, tenant: TenantId, conversations: Sequence[Conversation]
    ) -> Mapping[ConversationId, builtins.list[MessageId]]:
        """As ``message_ids`` for each of the conversations, by one query.

        One that is unknown by now has none.
        """
        table = schema.conversations
        async with self._database.read() as connection:
            own = await connection.scalars(
                select(table.c.id).where(
                    lookup.visible(table, tenant),
                    table.c.id.in_([conversation.id for conversation in conversations]),
                )
            )
            found = await _message_ids(connection, own.all())
        return {conversation.id: found.get(conversation.id, []) for conversation in conversations}


def _conversation(
    row: RowMapping, isolated: Mapping[ConversationId, tuple[Block, ...]]
) -> Conversation:
    values = {name: row[name] for name in _FIELDS}
    return Conversation(**values, isolated_blocks=isolated.get(row["id"], ()))


def _get(connection: Connection, tenant: TenantId, conversation_id: ConversationId) -> Conversation:
    row = lookup.require(connection, schema.conversations, tenant, conversation_id)
    return _conversation(row, blocks_of(connection, _ISOLATED_OWNER, [conversation_id]))


def _with_agent(
    connection: Connection, tenant: TenantId, conversation_id: ConversationId
) -> tuple[Conversation, Agent]:
    conversation = _get(connection, tenant, conversation_id)
    return conversation, agent_of(connection, tenant, conversation.agent_id)


async def _insert(
    connection: AsyncConnection,
    tenant: TenantId,
    conversation: Conversation,
    system_message: Message,
) -> None:
    values = {name: getattr(conversation, name) for name in _FIELDS}
    await connection.execute(insert(schema.conversations), {"tenant": tenant, **values})
    blocks = conversation.isolated_blocks
    if blocks:
        await insert_blocks(connection, tenant, blocks)
        rows = [
            {"conversation_id": conversation.id, "block_id": block.id, "position": position}
            for position, block in enumerate(blocks)
        ]
        await connection.execute(insert(schema.conversation_blocks), rows)
    thread = Thread(conversation.agent_id, conversation.id)
    await connection.run_sync(threads.put_system, tenant, thread, system_message)


async def _set(
    connection: AsyncConnection,
    tenant: TenantId,
    conversation_id: ConversationId,
    values: Mapping[str, Any],
) -> None:
    table = schema.conversations
    changed = await connection.execute(
        update(table)
        .where(lookup.visible(table, tenant), table.c.id == conversation_id)
        .values(dict(values))
    )
    if not changed.rowcount:
        raise lookup.not_found(table, conversation_id)


async def _message_ids(
    connection: AsyncConnection, thread_keys: Sequence[str]
) -> dict[str, list[MessageId]]:
    places, messages = schema.thread_messages, schema.messages
    rows = await connection.execute(
        select(
            places.c.thread_key,
            places.c.message_id,
            case((messages.c.role == Role.SUMMARY, messages.c.parts)),
        )
        .join(messages, places.c.message_id == messages.c.id)
        .where(places.c.thread_key.in_(thread_keys))
        .order_by(places.c.thread_key, places.c.position)
    )
    found: dict[str, list[MessageId]] = {}
    summaries: dict[str, dict[MessageId, SummaryPart]] = {}
    for thread_key, message_id, parts in rows:
        found.setdefault(thread_key, []).append(message_id)
        if parts and isinstance(parts[0], SummaryPart):
            summaries.setdefault(thread_key, {})[message_id] = parts[0]
    return {key: ids_in_context(ids, summaries.get(key, {})) for key, ids in found.items()}


def _forget_deleted(connection: Connection, limit: int) -> int:
    table, places, runs = schema.conversations, schema.thread_messages, schema.runs
    is_needed = exists().where(
        runs.c.conversation_id == table.c.id, or_(schema.ACTIVE, schema.CALLBACK_DUE)
    )
    has_messages = exists().where(places.c.thread_key == table.c.id)
    wanted = (
        select(table.c.id, table.c.agent_id)
        .where(table.c.deleted_at.is_not(None), has_messages, ~is_needed)
        .limit(limit)
    )
    found = connection.execute(wanted).all()
    for conversation_id, agent_id in found:
        threads.clear(connection, Thread(agent_id, conversation_id), system_too=True)
        connection.execute(
            update(runs).where(runs.c.conversation_id == conversation_id).values(input=())
        )
        gone = {"summary": None, "description": None}
        connection.execute(update(table).where(table.c.id == conversation_id).values(gone))
    return len(found)
