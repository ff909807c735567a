"""The look-ups by tenant, in one place: what is not the tenant's is not there."""

from typing import Final

from sqlalchemy import BindParameter, ColumnElement, RowMapping, Select, Table, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.errors import NotFoundError
from reattach.ids import TenantId
from reattach.records import schema
from reattach.records.base import Thread

_TEXTS: Final = {
    schema.agents.name: "Agent with ID {} not found",
    schema.blocks.name: "Block not found with id={}",
    schema.conversations.name: "Conversation not found with id={}",
    schema.messages.name: "Message with id {} not found.",
    schema.runs.name: "Run not found with id={}",
    schema.steps.name: "Step not found with id={}",
}


def not_found(table: Table, row_id: str) -> NotFoundError:
    return NotFoundError(_TEXTS[table.name].format(row_id))


def visible(table: Table, tenant: TenantId | BindParameter[str]) -> ColumnElement[bool]:
    """Whether a row is there for the tenant."""
    own = table.c.tenant == tenant
    if "deleted_at" in table.c:
        return and_(own, table.c.deleted_at.is_(None))
    return own


def owned(table: Table, tenant: TenantId | BindParameter[str]) -> Select[tuple[object, ...]]:
    """All rows that are there for the tenant."""
    return select(table).where(visible(table, tenant))


def listed(table: Table, tenant: TenantId) -> Select[tuple[object, ...]]:
    """All rows that lists show the tenant: those that are not hidden."""
    return owned(table, tenant).where(table.c.hidden.is_not(True))


async def find(
    connection: AsyncConnection, table: Table, tenant: TenantId, row_id: str
) -> RowMapping | None:
    found = await connection.execute(owned(table, tenant).where(table.c.id == row_id))
    return found.mappings().one_or_none()


async def require(
    connection: AsyncConnection, table: Table, tenant: TenantId, row_id: str
) -> RowMapping:
    """The row; raises NotFoundError if there is none for the tenant."""
    row = await find(connection, table, tenant, row_id)
    if row is None:
        raise not_found(table, row_id)
    return row


async def hold(connection: AsyncConnection, table: Table, tenant: TenantId, *row_ids: str) -> None:
    """Keep everybody else from changing the rows, and from making others that refer to them.

    Until the transaction ends; what it reads afterwards is what they left. Raises NotFoundError for
    one that is not there for the tenant. SQLite has one writer at a time, so nothing is to be kept.
    """
    # In one order, so that two transactions do not wait for each other.
    wanted = select(table.c.id).where(visible(table, tenant), table.c.id.in_(row_ids))
    held = set(await connection.scalars(wanted.order_by(table.c.id).with_for_update()))
    for row_id in row_ids:
        if row_id not in held:
            raise not_found(table, row_id)


async def require_thread(connection: AsyncConnection, tenant: TenantId, thread: Thread) -> None:
    """Raise NotFoundError unless the tenant has the agent, and the agent the conversation."""
    if thread.conversation_id is None:
        await require(connection, schema.agents, tenant, thread.agent_id)
        return
    table = schema.conversations
    row = await require(connection, table, tenant, thread.conversation_id)
    if row["agent_id"] != thread.agent_id:
        raise not_found(table, thread.conversation_id)
