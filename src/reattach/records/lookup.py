"""The look-ups by tenant, in one place: what is not the tenant's is not there."""

from typing import Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    and_,
    bindparam,
    select,
)

from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId
from reattach.records.base import Thread
from reattach.records.database import schema

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


_BY_ID: Final = {
    table: owned(table, bindparam("tenant")).where(table.c.id == bindparam("row_id"))
    for table in schema.metadata.sorted_tables
    if table.name in _TEXTS
}
_AGENT_ID: Final = _BY_ID[schema.agents].with_only_columns(schema.agents.c.id)
_AGENT_OF: Final = _BY_ID[schema.conversations].with_only_columns(schema.conversations.c.agent_id)


def find(connection: Connection, table: Table, tenant: TenantId, row_id: str) -> RowMapping | None:
    found = connection.execute(_BY_ID[table], {"tenant": tenant, "row_id": row_id})
    return found.mappings().one_or_none()


def require(connection: Connection, table: Table, tenant: TenantId, row_id: str) -> RowMapping:
    """The row; raises NotFoundError if there is none for the tenant."""
    row = find(connection, table, tenant, row_id)
    if row is None:
        raise not_found(table, row_id)
    return row


def hold(connection: Connection, table: Table, tenant: TenantId, *row_ids: str) -> None:
    """Keep everybody else from changing the rows, and from making others that refer to them.

    Until the transaction ends; what it reads afterwards is what they left. Raises NotFoundError for
    one that is not there for the tenant. SQLite has one writer at a time, so nothing is to be kept.
    """
    # In one order, so that two transactions do not wait for each other.
    wanted = select(table.c.id).where(visible(table, tenant), table.c.id.in_(row_ids))
    held = set(connection.scalars(wanted.order_by(table.c.id).with_for_update()))
    for row_id in row_ids:
        if row_id not in held:
            raise not_found(table, row_id)


def require_thread(connection: Connection, tenant: TenantId, thread: Thread) -> None:
    """Raise NotFoundError unless the tenant has the agent, and the agent the conversation."""
    row_id, known = thread.key, _AGENT_OF if thread.conversation_id else _AGENT_ID
    found = connection.execute(known, {"tenant": tenant, "row_id": row_id}).scalar_one_or_none()
    if found != thread.agent_id:
        table = schema.conversations if thread.conversation_id else schema.agents
        raise not_found(table, row_id)
