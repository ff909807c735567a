"""Named conversations."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, exists, insert, or_, select, update

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import (
    AgentId,
    ConversationId,
    MessageId,
    TenantId,
    new_block_id,
    new_conversation_id,
)
from reattach.domain.messages import Message
from reattach.records import lookup, threads
from reattach.records.agents import OF_CONVERSATION, agent_of_row
from reattach.records.audit_log import Action, note
from reattach.records.base import Actor, Agent, Block, Conversation, Page, Thread
from reattach.records.blocks import blocks_of, blocks_of_one, insert_blocks
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Row, Steps, take_steps
from reattach.records.paging import SortOrder, page_of
from reattach.records.repository import Repository
from reattach.records.tokens.tokens import revoke_of_conversation

_FIELDS = tuple(field.name for field in fields(Conversation) if field.name != "isolated_blocks")
_FIXED = frozenset({"id", "agent_id", "created_at", "isolated_blocks"})
_ISOLATED_OWNER = schema.conversation_blocks.c.conversation_id

_ONE: Final = PreparedStatement(
    lookup.by_id(schema.conversations).add_columns(
        exists().where(schema.conversations.c.id == _ISOLATED_OWNER).label("has_blocks")
    )
)

ConversationOrder = Literal["created_at", "last_run_completion", "last_message_at"]
ArchiveStatus = Literal["unarchived", "archived", "all"]


class Conversations(Repository):
    """The conversations of each tenant. A deleted one is not found; its runs still are."""

    async def create(
        self,
        tenant: TenantId,
        conversation: Conversation,
        system_message: Message,
        earlier: Sequence[Message] = (),
    ) -> Conversation:
        """Create it with its system message, and the messages that it begins with.

        Raises NotFoundError for an unknown agent.
        """

        def create(connection: Connection) -> None:
            if lookup.find(connection, schema.agents, tenant, conversation.agent_id) is None:
                raise NotFoundError("Agent not found")
            insert_conversation(connection, tenant, conversation, system_message)
            thread = Thread(conversation.agent_id, conversation.id)
            threads.append(connection, tenant, thread, earlier)

        await self._database.in_write(create)
        return conversation

    async def get(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation:
        return await self._database.in_short_read(_get, tenant, conversation_id)

    async def with_message_ids(
        self, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, builtins.list[MessageId]]:
        """Return the conversation and the ids of its messages in context: see ``message_ids``."""
        read = self._database.in_short_read(_with_message_ids, tenant, conversation_id)
        conversation, ids = await read
        if ids is None:
            ids = await self.message_ids(tenant, Thread(conversation.agent_id, conversation.id))
        return conversation, ids

    async def with_agent(
        self, tenant: TenantId, conversation_id: ConversationId
    ) -> tuple[Conversation, Agent]:
        """Return the conversation and its agent."""
        return await self._database.in_short_read(_with_agent, tenant, conversation_id)

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
        """List conversations; ``summary_search`` matches a part of the summary, in any case.

        Those without a value to sort by come last in both directions. Hidden ones are left out.
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

        def read(connection: Connection) -> builtins.list[Conversation]:
            found = page_of(connection, rows, tenant, page, order)
            return conversations_of(connection, found)

        return await self._database.in_read(read)

    async def update(
        self,
        tenant: TenantId,
        conversation_id: ConversationId,
        change: Callable[[Conversation], Conversation],
    ) -> Conversation:
        """Replace the conversation by ``change(conversation)``, as ``Agents.update`` does."""

        def write(connection: Connection) -> Conversation:
            lookup.lock(connection, schema.conversations, tenant, conversation_id)
            conversation = take_steps(connection, _get(connection, tenant, conversation_id))
            values = self._changed_fields(conversation, change(conversation), _FIXED)
            _set(connection, tenant, conversation_id, values)
            return take_steps(connection, _get(connection, tenant, conversation_id))

        return await self._database.in_write(write)

    async def delete(
        self, tenant: TenantId, conversation_id: ConversationId, *, by: Actor | None = None
    ) -> None:
        """Hide it from its clients, and revoke its stream tokens and those of its runs.

        An active run of it goes on to its end.
        """

        def write(connection: Connection) -> None:
            now = self._clock.now()
            _set(connection, tenant, conversation_id, {"deleted_at": now})
            revoke_of_conversation(connection, conversation_id, now)
            note(
                connection,
                by,
                Action.CONVERSATION_DELETED,
                now,
                tenant=tenant,
                subject=conversation_id,
            )

        await self._database.in_write(write)

    async def forget_deleted(self, limit: int) -> int:
        """Delete the messages of deleted conversations and the inputs of their runs.

        At most ``limit`` conversations, of all tenants; returns how many. A conversation is kept
        while a run of it is active or its callback is due, because these need its messages.
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
        """Create ``new`` with the messages of ``source`` and a system message of its own.

        Both share the messages up to and including ``up_to``. ``new`` must belong to the agent of
        ``source``. Raises NotFoundError for an unknown thread or message.
        """
        if new.agent_id != source.agent_id:
            raise ValueError(f"A fork belongs to agent {source.agent_id}, not to {new.agent_id}")

        def create(connection: Connection) -> None:
            lookup.require_thread(connection, tenant, source)
            insert_conversation(connection, tenant, new, system_message)
            threads.copy_places(connection, source, Thread(new.agent_id, new.id), up_to)

        await self._database.in_write(create)
        return new

    async def message_ids(self, tenant: TenantId, thread: Thread) -> builtins.list[MessageId]:
        """Return the ids of the messages in context, in order, the system message first."""

        def read(connection: Connection) -> builtins.list[MessageId]:
            lookup.require_thread(connection, tenant, thread)
            return threads.message_ids(connection, thread.key)

        return await self._database.in_read(read)

    async def message_ids_of(
        self, tenant: TenantId, conversations: Sequence[Conversation]
    ) -> Mapping[ConversationId, builtins.list[MessageId]]:
        """Return ``message_ids`` of each of the conversations, by one query.

        A conversation that was deleted meanwhile has none.
        """
        table = schema.conversations
        own = select(table.c.id).where(
            lookup.visible(table, tenant),
            table.c.id.in_([conversation.id for conversation in conversations]),
        )

        def read(connection: Connection) -> dict[str, builtins.list[MessageId]]:
            keys = connection.scalars(own).all()
            return threads.message_ids_of(connection, keys)

        found = await self._database.in_read(read)
        return {conversation.id: found.get(conversation.id, []) for conversation in conversations}


def fork_of(
    agent: Agent, source: Conversation | None, at: datetime, *, hidden: bool = False
) -> Conversation:
    """Return a new conversation with the model and settings of ``source``.

    None stands for the default conversation of the agent. ``at`` is the present time.
    """
    new = Conversation(
        ConversationId(new_conversation_id()),
        agent.id,
        created_at=at,
        updated_at=at,
        hidden=hidden,
    )
    if source is None:
        return new
    return replace(
        new,
        model=source.model,
        model_settings=source.model_settings,
        context_window_limit=source.context_window_limit,
        isolated_blocks=copies(source.isolated_blocks, at),
    )


def copies(blocks: Sequence[Block], at: datetime) -> tuple[Block, ...]:
    """Return the blocks with ids of their own. ``at`` is the present time."""
    return tuple(
        replace(block, id=new_block_id(), created_at=at, updated_at=at) for block in blocks
    )


def conversations_of(connection: Connection, rows: Sequence[Row]) -> list[Conversation]:
    """Return the conversations of the rows, with one query for all their blocks."""
    if not rows:
        return []
    isolated = blocks_of(connection, _ISOLATED_OWNER, [row["id"] for row in rows])
    return [_conversation(row, isolated) for row in rows]


def _conversation(row: Row, isolated: Mapping[ConversationId, tuple[Block, ...]]) -> Conversation:
    blocks = isolated.get(row["id"], ())
    return Conversation(**{name: row[name] for name in _FIELDS}, isolated_blocks=blocks)


def _get(
    connection: Connection, tenant: TenantId, conversation_id: ConversationId
) -> Steps[Conversation]:
    row = yield from lookup.required(
        connection, schema.conversations, tenant, conversation_id, _ONE
    )
    return (yield from _of_row(connection, row))


def _of_row(connection: Connection, row: Row) -> Steps[Conversation]:
    isolated: Mapping[ConversationId, tuple[Block, ...]] = {}
    if row["has_blocks"]:
        isolated = yield from blocks_of_one(connection, _ISOLATED_OWNER, row["id"])
    return _conversation(row, isolated)


def _with_message_ids(
    connection: Connection, tenant: TenantId, conversation_id: ConversationId
) -> Steps[tuple[Conversation, list[MessageId] | None]]:
    conversation = yield from _get(connection, tenant, conversation_id)
    return conversation, (yield from threads.message_ids_if_few(conversation_id))


def _with_agent(
    connection: Connection, tenant: TenantId, conversation_id: ConversationId
) -> Steps[tuple[Conversation, Agent]]:
    asked = {"tenant": tenant, "row_id": conversation_id}
    found, agents = yield [(_ONE, asked), (OF_CONVERSATION, asked)]
    if not found:
        raise lookup.not_found(schema.conversations, conversation_id)
    conversation = yield from _of_row(connection, _ONE.named(connection, found)[0])
    if not agents:
        raise lookup.not_found(schema.agents, conversation.agent_id)
    agent = agent_of_row(connection, OF_CONVERSATION.named(connection, agents)[0])
    return conversation, (yield from agent)


def insert_conversation(
    connection: Connection,
    tenant: TenantId,
    conversation: Conversation,
    system_message: Message,
) -> None:
    values = {name: getattr(conversation, name) for name in _FIELDS}
    connection.execute(insert(schema.conversations), {"tenant": tenant, **values})
    blocks = conversation.isolated_blocks
    if blocks:
        insert_blocks(connection, tenant, blocks)
        rows = [
            {"conversation_id": conversation.id, "block_id": block.id, "position": position}
            for position, block in enumerate(blocks)
        ]
        connection.execute(insert(schema.conversation_blocks), rows)
    thread = Thread(conversation.agent_id, conversation.id)
    threads.put_system(connection, tenant, thread, system_message)


def _set(
    connection: Connection,
    tenant: TenantId,
    conversation_id: ConversationId,
    values: Mapping[str, Any],
) -> None:
    table = schema.conversations
    changed = connection.execute(
        update(table)
        .where(lookup.visible(table, tenant), table.c.id == conversation_id)
        .values(dict(values))
    )
    if not changed.rowcount:
        raise lookup.not_found(table, conversation_id)


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
            update(runs)
            .where(runs.c.conversation_id == conversation_id)
            .values(input=(), input_text=None)
        )
        # The frames of the others still show parts of their requests: see retries.forget_requests.
        connection.execute(
            update(runs)
            .where(runs.c.conversation_id == conversation_id, runs.c.log_deleted_at.is_not(None))
            .values(request_extras=None)
        )
        gone = {"summary": None, "description": None}
        connection.execute(update(table).where(table.c.id == conversation_id).values(gone))
    return len(found)
