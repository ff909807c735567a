"""Stored messages, by thread, run, agent and tenant."""

import builtins
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Connection, Select, bindparam, exists, select

from reattach.domain.approvals import PendingApproval
from reattach.domain.clock import Clock
from reattach.domain.errors import ConversationBusyError, NotFoundError, OtidConflictError
from reattach.domain.events import StopReason
from reattach.domain.ids import AgentId, ConversationId, MessageId, RunId, TenantId
from reattach.domain.limits.requests import MAX_PAGE_ITEMS
from reattach.domain.messages import Message, Role, ToolCallPart
from reattach.records import lookup, threads
from reattach.records.base import Run, Span, Thread
from reattach.records.contexts.contexts import CachedContext, Contexts, ThreadContext
from reattach.records.contexts.message_rows import message_of
from reattach.records.database import schema
from reattach.records.database.database import Database
from reattach.records.database.prepared import take_steps
from reattach.records.repository import Repository
from reattach.records.runs import admission
from reattach.records.runs.retries import RequestDigest
from reattach.records.spans import ByOrdinal, MessageSpans


class Messages(Repository):
    """The messages of each tenant. A cursor that is not in a list raises NotFoundError."""

    def __init__(self, database: Database, clock: Clock, contexts: Contexts) -> None:
        super().__init__(database, clock)
        self._contexts = contexts

    async def list(
        self,
        tenant: TenantId,
        thread: Thread,
        span: Span,
        *,
        system_too: bool = True,
    ) -> builtins.list[Message]:
        """List the messages of a thread, with its system message unless not ``system_too``."""

        def read(connection: Connection) -> builtins.list[Message]:
            lookup.require_thread(connection, tenant, thread)
            place_of = partial(threads.place_of, connection, thread)
            asked = {"thread_key": thread.key}
            return _OF_THREAD[system_too].read(connection, asked, span, place_of)

        return await self._database.in_read(read)

    async def context(
        self, tenant: TenantId, thread: Thread, *, also_deleted: bool = False
    ) -> ThreadContext:
        """Return the messages in context of a thread, with its system message.

        Messages that this process has decoded before come from memory. With ``also_deleted`` a
        thread is read that was deleted during its active run, which goes on.
        """
        cached = self._contexts.get(thread.key)
        try:
            read = partial(
                _context, tenant=tenant, thread=thread, cached=cached, also_deleted=also_deleted
            )
            found = await self._database.in_grouped_read(read, in_one_piece=True)
            if found is None:  # It is long, and others that share a transaction would wait.
                found = await self._database.in_read(read, in_one_piece=False)
            assert found is not None
        except NotFoundError:
            self._contexts.put(thread.key, None)
            raise
        context, kept = found
        self._contexts.put(thread.key, kept)
        return context

    def drop_idle_contexts(self) -> None:
        """Free the memory of conversations that had no turn for an hour."""
        self._contexts.drop_idle()

    async def history(self, tenant: TenantId, thread: Thread) -> builtins.list[Message]:
        """Return the messages in context of a thread."""
        return (await self.context(tenant, thread)).messages

    async def append(self, tenant: TenantId, thread: Thread, message: Message) -> None:
        """Append the message to the thread."""

        def write(connection: Connection) -> None:
            threads.lock(connection, tenant, thread)
            threads.append(connection, tenant, thread, [message])

        # A run of the thread may be settled meanwhile, without its lock.
        await self._database.in_raced_write(write)

    async def add(
        self,
        tenant: TenantId,
        thread: Thread,
        messages: Sequence[Message],
        digest: RequestDigest,
    ) -> builtins.list[Message]:
        """Append a client's messages, all or none, and return them as they are stored.

        If ``digest`` says that the request repeats another one, the messages of that one are
        returned, and nothing is appended.

        Raises, in this order:
            NotFoundError: There is no such thread.
            OtidConflictError: The request that this one repeats had other messages.
            ConversationBusyError: A run of the thread is active; its messages come before these.
            PendingApprovalError: The thread waits for an answer.
        """

        def write(connection: Connection) -> builtins.list[Message]:
            threads.lock(connection, tenant, thread)
            known = _added(connection, thread, digest)
            if known:
                if [(one.role, one.parts) for one in known] != [
                    (one.role, one.parts) for one in messages
                ]:
                    raise OtidConflictError(None)
                return known
            active = admission.active_run(connection, thread)
            if active is not None:
                raise ConversationBusyError(active.id, thread.key)
            pending = threads.pending(connection, thread)
            if pending is not None:
                raise pending.error()
            otids = [digest.name, *(f"{digest.name}:{n}" for n in range(2, len(messages) + 1))]
            named = [
                msgspec.structs.replace(one, otid=otid)
                for one, otid in zip(messages, otids, strict=False)
            ]
            threads.append(connection, tenant, thread, named)
            return named

        return await self._database.in_write(write)

    async def of_run(
        self,
        tenant: TenantId,
        run_id: RunId,
        span: Span,
        *,
        system_too: bool = True,
    ) -> builtins.list[Message]:
        """List the messages of the run that are in a conversation, its input first.

        Without ``system_too`` those with the role ``system`` are left out. A cursor that is not
        among them is ignored. The list is empty until the run is settled; its input is
        ``Run.input`` until then.
        """

        def read(connection: Connection) -> builtins.list[Message]:
            lookup.require_id(connection, schema.runs, tenant, run_id)
            asked = {"tenant": tenant, "run_id": run_id}
            return _OF_RUN[system_too].read(connection, asked, span, ignores_unknown=True)

        return await self._database.in_read(read)

    async def in_own_thread(self, run: Run) -> builtins.list[Message]:
        """Return all messages of the run if its own conversation keeps them, or an empty list.

        A conversation that was emptied or deleted keeps none, even if a fork shares some of them.
        """
        places, conversations = schema.thread_messages, schema.conversations
        deleted = exists().where(
            conversations.c.id == run.thread.key, conversations.c.deleted_at.is_not(None)
        )
        place = (
            select(places.c.message_id)
            .join(schema.messages, places.c.message_id == schema.messages.c.id)
            .where(
                schema.messages.c.run_id == run.id,
                places.c.thread_key == run.thread.key,
                ~deleted,
            )
            .limit(1)
        )

        def read(connection: Connection) -> bool:
            return connection.scalar(place) is not None

        if not await self._database.in_read(read):
            return []
        return await self.all_of_run(run.tenant, run.id)

    async def all_of_run(self, tenant: TenantId, run_id: RunId) -> builtins.list[Message]:
        """Return all messages of the run that are in a conversation, as ``of_run`` lists them."""
        messages: builtins.list[Message] = []
        span = Span(MAX_PAGE_ITEMS, ascending=True)
        while page := await self.of_run(tenant, run_id, span):
            messages += page
            span = replace(span, after=page[-1].id)
        return messages

    async def list_of_agent(
        self,
        tenant: TenantId,
        agent_id: AgentId,
        span: Span,
        *,
        conversation_id: ConversationId | Literal["default"] | None = None,
    ) -> builtins.list[Message]:
        """List the messages of one conversation, of the default thread, or of all threads.

        Over all threads they are in the order in which they were stored, and a message that forks
        share comes once. Messages of deleted conversations are left out.
        """
        if conversation_id is not None:
            named = None if conversation_id == "default" else ConversationId(conversation_id)
            thread = Thread(agent_id, named)
            return await self.list(tenant, thread, span)

        def read(connection: Connection) -> builtins.list[Message]:
            lookup.require_id(connection, schema.agents, tenant, agent_id)
            asked = {"tenant": tenant, "agent_id": agent_id}
            return _OF_AGENT.read(connection, asked, span)

        return await self._database.in_read(read)

    async def list_of_tenant(
        self,
        tenant: TenantId,
        span: Span,
    ) -> builtins.list[Message]:
        """List the messages of all agents of the tenant, as ``list_of_agent`` does for one."""
        return await self._database.in_read(_OF_TENANT.read, {"tenant": tenant}, span)

    async def get(self, tenant: TenantId, message_id: MessageId) -> Message:
        row = await self._database.in_read(lookup.require, schema.messages, tenant, message_id)
        return message_of(row)

    async def pending(self, tenant: TenantId, thread: Thread) -> PendingApproval | None:
        """Return the approval request of the thread that has no answer yet."""

        def read(connection: Connection) -> PendingApproval | None:
            lookup.require_thread(connection, tenant, thread)
            return threads.pending(connection, thread)

        return await self._database.in_read(read)

    async def asked_calls(self, tenant: TenantId, agent_id: AgentId) -> builtins.list[ToolCallPart]:
        """Return the calls for whose approval the newest runs of the agent have asked."""
        found = {"tenant": tenant, "agent_id": agent_id}

        def read(connection: Connection) -> builtins.list[ToolCallPart]:
            return [
                part
                for row in connection.execute(_ASKING, found).mappings()
                for part in message_of(row).parts
                if isinstance(part, ToolCallPart) and part.needs_approval
            ]

        return await self._database.in_read(read)

    async def pending_in(self, thread: Thread) -> PendingApproval | None:
        """As ``pending``, for the server itself: it finds that of a deleted conversation too."""
        return await self._database.in_read(threads.pending, thread)

    async def cancel_pending(
        self, tenant: TenantId, thread: Thread, at: datetime, *, run_id: RunId | None = None
    ) -> PendingApproval | None:
        """Cancel the pending approval request of the thread and return it; its calls never run.

        Returns None and changes nothing if no request is pending, if it belongs to another run than
        ``run_id``, or while a run of the thread is active, because that run answers it.
        """

        def write(connection: Connection) -> PendingApproval | None:
            # The lock puts an answer that is being admitted before this, or after it.
            threads.lock(connection, tenant, thread)
            if admission.active_run(connection, thread) is not None:
                return None
            pending = threads.pending(connection, thread)
            if pending is None or (run_id is not None and pending.request.run_id != run_id):
                return None
            threads.append(connection, tenant, thread, [pending.cancellation(at)])
            return pending

        return await self._database.in_write(write)

    async def recompile(self, tenant: TenantId, thread: Thread, system_message: Message) -> None:
        """Replace the text of the thread's system message by that of this one."""

        def write(connection: Connection) -> None:
            threads.lock(connection, tenant, thread)
            threads.set_system(connection, tenant, thread, system_message)

        await self._database.in_write(write)

    async def reset(
        self, tenant: TenantId, agent_id: AgentId, system_message: Message | None = None
    ) -> None:
        """Empty the agent's default thread, except for its system message.

        ``system_message`` replaces that message. Messages that a fork shares stay in the fork.
        Raises ConversationBusyError while a run of the thread is active.
        """
        thread = Thread(agent_id, None)

        def write(connection: Connection) -> None:
            lookup.lock(connection, schema.agents, tenant, agent_id)
            active = admission.active_run(connection, thread)
            if active is not None:
                raise ConversationBusyError(active.id, thread.key)
            threads.clear(connection, thread, system_too=system_message is not None)
            if system_message is not None:
                threads.put_system(connection, tenant, thread, system_message)

        await self._database.in_write(write)


def _context(
    connection: Connection,
    tenant: TenantId,
    thread: Thread,
    cached: CachedContext | None,
    *,
    also_deleted: bool,
    in_one_piece: bool,
) -> tuple[ThreadContext, CachedContext | None] | None:
    if not also_deleted:
        lookup.require_thread(connection, tenant, thread)
    found = threads.context(connection, thread, cached, in_one_piece=in_one_piece)
    return take_steps(connection, found)


def _of_roles(rows: Select[Any], *, system_too: bool) -> Select[Any]:
    return rows if system_too else rows.where(schema.messages.c.role.is_distinct_from(Role.SYSTEM))


def _is_shown() -> Any:
    """Return the condition that a message is in a thread that was not deleted."""
    places = schema.thread_messages
    conversations = schema.conversations
    deleted = exists().where(
        conversations.c.id == places.c.thread_key, conversations.c.deleted_at.is_not(None)
    )
    return exists().where(places.c.message_id == schema.messages.c.id, ~deleted)


_OWNED: Final = lookup.owned(schema.messages, bindparam("tenant"))
_OF_TENANT: Final = ByOrdinal(_OWNED.where(_is_shown()))
_OF_AGENT: Final = ByOrdinal(
    _OWNED.where(schema.messages.c.agent_id == bindparam("agent_id"), _is_shown())
)
_OF_RUN: Final = {
    system_too: ByOrdinal(
        _of_roles(
            _OWNED.where(schema.messages.c.run_id == bindparam("run_id")), system_too=system_too
        )
    )
    for system_too in (True, False)
}
_OF_THREAD: Final = {
    system_too: MessageSpans(
        _of_roles(threads.with_places(bindparam("thread_key")), system_too=system_too),
        schema.thread_messages.c.position,
    )
    for system_too in (True, False)
}


_MAX_ASKING_RUNS: Final = 10_000
"""Newest runs of an agent among which those are looked for that asked for an approval."""

_recent = (
    select(schema.runs.c.id, schema.runs.c.stop_reason)
    .where(
        schema.runs.c.tenant == bindparam("tenant"),
        schema.runs.c.agent_id == bindparam("agent_id"),
    )
    .order_by(schema.runs.c.created_at.desc(), schema.runs.c.ordinal.desc())
    .limit(_MAX_ASKING_RUNS)
    .subquery()
)
_ASKING: Final = _OWNED.where(
    schema.messages.c.role == Role.ASSISTANT,
    schema.messages.c.run_id.in_(
        select(_recent.c.id).where(_recent.c.stop_reason == StopReason.REQUIRES_APPROVAL)
    ),
)


def _added(connection: Connection, thread: Thread, digest: RequestDigest) -> list[Message]:
    """Return the messages in the thread of the newest request that this one says it repeats."""
    if digest.since is None:
        return []
    columns = schema.messages.c
    rows = connection.execute(
        threads.with_places(thread.key)
        .where(
            columns.otid.startswith(digest.name, autoescape=True),
            columns.created_at >= digest.since,
        )
        .order_by(schema.thread_messages.c.position.desc())
    )
    found = []
    for row in rows.mappings():
        found.append(message_of(row))
        if row["otid"] == digest.name:
            break
    return found[::-1]
