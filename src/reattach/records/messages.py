"""Stored messages, by thread, by run, by agent."""

import builtins
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Column, Connection, Select, exists, func
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.approvals import PendingApproval
from reattach.domain.errors import ConversationBusyError, NotFoundError
from reattach.domain.ids import AgentId, ConversationId, MessageId, RunId, TenantId
from reattach.domain.limits import CONTEXT_CACHE_BYTES
from reattach.domain.messages import Message
from reattach.records import lookup, threads
from reattach.records.base import Thread, ThreadContext
from reattach.records.contexts import Contexts, KeptContext
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.paging import span_of
from reattach.records.runs import admission


class Messages:
    """The messages of each tenant.

    In every list ``before`` means older and ``after`` newer, in absolute time, whatever the
    order; a cursor that is not in the list raises NotFoundError. One cursor alone gives the
    messages next to it; without, or with both, the list begins where its order does.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._contexts = Contexts(CONTEXT_CACHE_BYTES)

    async def list(
        self,
        tenant: TenantId,
        thread: Thread,
        *,
        before: MessageId | None = None,
        after: MessageId | None = None,
        limit: int,
        ascending: bool,
    ) -> builtins.list[Message]:
        """The messages of a thread, its system message included."""
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require_thread, tenant, thread)
            rows = await span_of(
                connection,
                threads.placed(thread),
                schema.thread_messages.c.position,
                before=await connection.run_sync(threads.place_of, thread, before),
                after=await connection.run_sync(threads.place_of, thread, after),
                limit=limit,
                ascending=ascending,
            )
        return [threads.message_of(row) for row in rows]

    async def context(self, tenant: TenantId, thread: Thread) -> ThreadContext:
        """The messages in context of a thread, its system message included.

        Those that this process has decoded before are not read again.
        """
        kept = self._contexts.get(thread.key)
        try:
            context, kept = await self._database.in_read(_context, tenant, thread, kept)
        except NotFoundError:
            self._contexts.put(thread.key, None)
            raise
        self._contexts.put(thread.key, kept)
        return context

    async def history(self, tenant: TenantId, thread: Thread) -> builtins.list[Message]:
        """The messages that are in context of a thread."""
        return (await self.context(tenant, thread)).messages

    async def append(self, tenant: TenantId, thread: Thread, message: Message) -> None:
        """Add the message to the thread, behind all others."""
        async with self._database.write() as connection:
            await connection.run_sync(threads.hold, tenant, thread)
            await connection.run_sync(threads.append, tenant, thread, [message])

    async def of_run(
        self,
        tenant: TenantId,
        run_id: RunId,
        *,
        before: MessageId | None = None,
        after: MessageId | None = None,
        limit: int,
        ascending: bool,
    ) -> builtins.list[Message]:
        """The messages that a conversation keeps of the run, its input first.

        A cursor that is not among them is ignored. None before the run is settled; its input is
        ``Run.input`` then.
        """
        messages = schema.messages
        rows = lookup.owned(messages, tenant).where(messages.c.run_id == run_id)
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require, schema.runs, tenant, run_id)
            return await _by_ordinal(
                connection,
                rows,
                before,
                after,
                limit=limit,
                ascending=ascending,
                ignores_unknown=True,
            )

    async def list_of_agent(
        self,
        tenant: TenantId,
        agent_id: AgentId,
        *,
        conversation_id: ConversationId | Literal["default"] | None = None,
        before: MessageId | None = None,
        after: MessageId | None = None,
        limit: int,
        ascending: bool,
    ) -> builtins.list[Message]:
        """The messages of one conversation, of the default thread, or of all of them together.

        Together they are in the order in which they were stored, and one that forks share comes
        once. Those of deleted conversations are not there.
        """
        if conversation_id is not None:
            named = None if conversation_id == "default" else ConversationId(conversation_id)
            thread = Thread(agent_id, named)
            return await self.list(
                tenant, thread, before=before, after=after, limit=limit, ascending=ascending
            )
        messages = schema.messages
        rows = lookup.owned(messages, tenant).where(messages.c.agent_id == agent_id, _is_shown())
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require, schema.agents, tenant, agent_id)
            return await _by_ordinal(
                connection, rows, before, after, limit=limit, ascending=ascending
            )

    async def list_of_tenant(
        self,
        tenant: TenantId,
        *,
        before: MessageId | None = None,
        after: MessageId | None = None,
        limit: int,
        ascending: bool,
    ) -> builtins.list[Message]:
        """Return the messages of all agents of the tenant, as ``list_of_agent`` does of one."""
        rows = lookup.owned(schema.messages, tenant).where(_is_shown())
        async with self._database.read() as connection:
            return await _by_ordinal(
                connection, rows, before, after, limit=limit, ascending=ascending
            )

    async def get(self, tenant: TenantId, message_id: MessageId) -> Message:
        async with self._database.read() as connection:
            row = await connection.run_sync(lookup.require, schema.messages, tenant, message_id)
        return threads.message_of(row)

    async def pending(self, tenant: TenantId, thread: Thread) -> PendingApproval | None:
        """The approval request of the thread that has no answer."""
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require_thread, tenant, thread)
            return await connection.run_sync(threads.pending, thread)

    async def pending_in(self, thread: Thread) -> PendingApproval | None:
        """As ``pending``, for the server itself: also of a conversation that was deleted."""
        return await self._database.in_read(threads.pending, thread)

    async def cancel_pending(
        self, tenant: TenantId, thread: Thread, at: datetime, *, run_id: RunId | None = None
    ) -> PendingApproval | None:
        """End the wait of the thread, and return what it waited for; its calls did not run.

        None, and no change, if it does not wait, if what it waits for is of another run than
        ``run_id``, or while a run of it is active: that run answers.
        """
        async with self._database.write() as connection:
            # An answer that is being admitted comes before this, or after.
            await connection.run_sync(threads.hold, tenant, thread)
            if await connection.run_sync(admission.active_run, thread) is not None:
                return None
            pending = await connection.run_sync(threads.pending, thread)
            if pending is None or (run_id is not None and pending.request.run_id != run_id):
                return None
            await connection.run_sync(threads.append, tenant, thread, [pending.cancellation(at)])
            return pending

    async def recompile(self, tenant: TenantId, thread: Thread, system_message: Message) -> None:
        """Let the thread begin with what this system message says."""
        async with self._database.write() as connection:
            await connection.run_sync(threads.hold, tenant, thread)
            await connection.run_sync(threads.set_system, tenant, thread, system_message)

    async def reset(
        self, tenant: TenantId, agent_id: AgentId, system_message: Message | None = None
    ) -> None:
        """Empty the agent's default thread, which keeps its system message or gets a new one.

        Messages that a fork shows stay there. Raises ConversationBusyError while a run of the
        thread is active.
        """
        thread = Thread(agent_id, None)
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, schema.agents, tenant, agent_id)
            active = await connection.run_sync(admission.active_run, thread)
            if active is not None:
                raise ConversationBusyError(active.id, thread.key)
            await connection.run_sync(threads.clear, thread, system_too=system_message is not None)
            if system_message is not None:
                await connection.run_sync(threads.put_system, tenant, thread, system_message)


def _context(
    connection: Connection, tenant: TenantId, thread: Thread, kept: KeptContext | None
) -> tuple[ThreadContext, KeptContext | None]:
    lookup.require_thread(connection, tenant, thread)
    return threads.context(connection, thread, kept)


def _is_shown() -> Any:
    """Whether a message has a place in a thread that was not deleted."""
    places = schema.thread_messages
    conversations = schema.conversations
    deleted = exists().where(
        conversations.c.id == places.c.thread_key, conversations.c.deleted_at.is_not(None)
    )
    return exists().where(places.c.message_id == schema.messages.c.id, ~deleted)


async def _by_ordinal(
    connection: AsyncConnection,
    rows: Select[Any],
    before: MessageId | None,
    after: MessageId | None,
    *,
    limit: int,
    ascending: bool,
    ignores_unknown: bool = False,
) -> builtins.list[Message]:
    ordinal: Column[Any] = schema.messages.c.ordinal

    async def place(message_id: MessageId | None) -> int | None:
        if message_id is None:
            return None
        found: int | None = await connection.scalar(
            rows.with_only_columns(func.max(ordinal)).where(schema.messages.c.id == message_id)
        )
        if found is None and not ignores_unknown:
            raise lookup.not_found(schema.messages, message_id)
        return found

    span = await span_of(
        connection,
        rows,
        ordinal,
        before=await place(before),
        after=await place(after),
        limit=limit,
        ascending=ascending,
    )
    return [threads.message_of(row) for row in span]
