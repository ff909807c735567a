"""Conversations that a run creates with itself, and the keys by which clients name them.

A key is unique for a tenant, an agent and a dialect. It and its conversation are created in the
transaction that creates the first run, so a client that sends twice at once gets one conversation.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, exists, insert, or_, select, update

from reattach.domain.ids import AgentId, ConversationId, MessageId, TenantId
from reattach.domain.messages import Message
from reattach.records import lookup
from reattach.records.base import Conversation, Thread
from reattach.records.database import schema
from reattach.records.repository import Repository
from reattach.records.tokens.tokens import revoke_of_conversation

_keys = schema.conversation_keys

NAMELESS_RUN_TYPE: Final = "send_chat_completions"
"""The type of runs whose clients know no id of a conversation, only keys that they choose."""


@dataclass(frozen=True, slots=True)
class ConversationKey:
    """A client's own name of a conversation with an agent."""

    agent_id: AgentId
    dialect: str
    key: str


@dataclass(frozen=True, slots=True)
class Opening:
    """A conversation that a run creates with itself."""

    conversation: Conversation
    system_message: Message
    key: ConversationKey | None = None
    """The name under which it is found from then on; None: only its id finds it."""
    earlier: tuple[Message, ...] = ()
    """Messages that it begins with, after the system message and those of the source."""
    source: Thread | None = None
    """The thread whose messages it shares: it is a fork of that thread."""
    up_to: MessageId | None = None
    """The last message that it shares; None: all."""
    replaces: ConversationId | None = None
    """The conversation that had the key until then."""


class ConversationKeys(Repository):
    """The keys of all tenants."""

    async def find(self, tenant: TenantId, key: ConversationKey) -> ConversationId | None:
        """Return the conversation of the key; None if it has none, or none any more."""
        return await self._database.in_read(find_conversation, tenant, key)

    async def delete_nameless(self, limit: int) -> int:
        """Delete conversations that their clients cannot name, once the logs of all runs are gone.

        They are hidden and have no key, and no other API has sent to them. At most ``limit``, of
        all tenants; returns how many. ``Conversations.forget_deleted`` then erases their messages.
        """
        return await self._database.in_write(_delete_nameless, limit, self._clock.now())


def find_conversation(
    connection: Connection, tenant: TenantId, key: ConversationKey
) -> ConversationId | None:
    """Return the conversation of the key: see ``ConversationKeys.find``."""
    found = connection.execute(
        select(_keys.c.conversation_id).where(
            _keys.c.tenant == tenant,
            _keys.c.agent_id == key.agent_id,
            _keys.c.dialect == key.dialect,
            _keys.c.key == key.key,
        )
    ).scalar_one_or_none()
    if found is None or lookup.find(connection, schema.conversations, tenant, found) is None:
        return None
    return ConversationId(found)


def insert_key(
    connection: Connection,
    tenant: TenantId,
    key: ConversationKey,
    conversation_id: ConversationId,
    replaces: ConversationId | None = None,
) -> None:
    """Give the key to the conversation, also if ``replaces`` or a deleted one had it.

    The insert fails if another transaction does the same; see ``lost_a_race``.
    """
    conversations = schema.conversations
    is_deleted = exists().where(
        conversations.c.id == _keys.c.conversation_id, conversations.c.deleted_at.is_not(None)
    )
    # Any other one may be the conversation that another transaction has just begun.
    is_free = or_(_keys.c.conversation_id == replaces, is_deleted)
    connection.execute(
        delete(_keys).where(
            _keys.c.tenant == tenant,
            _keys.c.agent_id == key.agent_id,
            _keys.c.dialect == key.dialect,
            _keys.c.key == key.key,
            is_free,
        )
    )
    values = {
        "tenant": tenant,
        "agent_id": key.agent_id,
        "dialect": key.dialect,
        "key": key.key,
        "conversation_id": conversation_id,
    }
    connection.execute(insert(_keys).values(values))


def _delete_nameless(connection: Connection, limit: int, now: datetime) -> int:
    table, runs = schema.conversations, schema.runs
    is_own = runs.c.conversation_id == table.c.id
    is_used = or_(schema.LOG_KEPT, runs.c.run_type != NAMELESS_RUN_TYPE)
    nameless = (
        select(table.c.id)
        .where(table.c.hidden.is_(True), table.c.deleted_at.is_(None))
        .where(exists().where(is_own), ~exists().where(is_own, is_used))
        .where(~exists().where(_keys.c.conversation_id == table.c.id))
        .limit(limit)
    )
    found = connection.scalars(nameless).all()
    for conversation_id in found:
        revoke_of_conversation(connection, conversation_id, now)
    connection.execute(update(table).where(table.c.id.in_(found)).values(deleted_at=now))
    return len(found)
