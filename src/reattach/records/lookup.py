"""Queries by tenant. A row of another tenant is treated as missing."""

from typing import Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
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
from reattach.records.database.prepared import PreparedStatement, Row, Steps, take_steps

_TEXTS: Final = {
    schema.agents.name: "Agent with ID {} not found",
    schema.blocks.name: "Block not found with id={}",
    schema.conversations.name: "Conversation not found with id={}",
    schema.messages.name: "Message with id {} not found.",
    schema.runs.name: "Run not found with id={}",
    schema.steps.name: "Step not found with id={}",
    schema.stream_tokens.name: "Token not found with id={}",
}


def not_found(table: Table, row_id: str) -> NotFoundError:
    return NotFoundError(_TEXTS[table.name].format(row_id))


def visible(table: Table, tenant: TenantId | BindParameter[str]) -> ColumnElement[bool]:
    """Return the condition that a row belongs to the tenant and is not deleted."""
    own = table.c.tenant == tenant
    if "deleted_at" in table.c:
        return and_(own, table.c.deleted_at.is_(None))
    return own


def owned(table: Table, tenant: TenantId | BindParameter[str]) -> Select[tuple[object, ...]]:
    """Select the rows of the tenant that are not deleted."""
    return select(table).where(visible(table, tenant))


def listed(table: Table, tenant: TenantId) -> Select[tuple[object, ...]]:
    """Select the rows of the tenant that are neither deleted nor hidden."""
    return owned(table, tenant).where(table.c.hidden.is_not(True))


def by_id(table: Table) -> Select[tuple[object, ...]]:
    """Select the row ``row_id`` of the tenant ``tenant``."""
    return owned(table, bindparam("tenant")).where(table.c.id == bindparam("row_id"))


_BY_ID: Final = {
    table: PreparedStatement(by_id(table))
    for table in schema.metadata.sorted_tables
    if table.name in _TEXTS
}
_IDS: Final = {
    table: PreparedStatement(by_id(table).with_only_columns(table.c.id)) for table in _BY_ID
}
_AGENT_OF: Final = PreparedStatement(
    by_id(schema.conversations).with_only_columns(schema.conversations.c.agent_id)
)


def find(connection: Connection, table: Table, tenant: TenantId, row_id: str) -> Row | None:
    """Return the row; None if the tenant has none with this id."""
    return _BY_ID[table].first(connection, {"tenant": tenant, "row_id": row_id})


def require(
    connection: Connection,
    table: Table,
    tenant: TenantId,
    row_id: str,
    query: PreparedStatement | None = None,
) -> Row:
    """Return the row, as ``query`` reads it: ``by_id`` with other columns.

    Raises NotFoundError if the tenant has none with this id.
    """
    return take_steps(connection, required(connection, table, tenant, row_id, query))


def required(
    connection: Connection,
    table: Table,
    tenant: TenantId,
    row_id: str,
    query: PreparedStatement | None = None,
) -> Steps[Row]:
    """Return the row as ``require`` does."""
    query = query or _BY_ID[table]
    (rows,) = yield [(query, {"tenant": tenant, "row_id": row_id})]
    if not rows:
        raise not_found(table, row_id)
    return query.named(connection, rows)[0]


def require_id(connection: Connection, table: Table, tenant: TenantId, row_id: str) -> None:
    """Raise NotFoundError if the tenant has no row with this id."""
    if not _IDS[table].rows(connection, {"tenant": tenant, "row_id": row_id}):
        raise not_found(table, row_id)


def lock(connection: Connection, table: Table, tenant: TenantId, *row_ids: str) -> None:
    """Lock the rows until the transaction ends, against changes and new references to them.

    Reads after this see the newest state. On SQLite a write already excludes all others. Raises
    NotFoundError for a row that the tenant does not have.
    """
    # Ordered, so that two transactions do not wait for each other.
    wanted = select(table.c.id).where(visible(table, tenant), table.c.id.in_(row_ids))
    locked = set(connection.scalars(wanted.order_by(table.c.id).with_for_update()))
    for row_id in row_ids:
        if row_id not in locked:
            raise not_found(table, row_id)


def require_thread(connection: Connection, tenant: TenantId, thread: Thread) -> None:
    """Raise NotFoundError unless the tenant has the agent and the agent the conversation."""
    row_id, known = thread.key, _AGENT_OF if thread.conversation_id else _IDS[schema.agents]
    found = known.value(connection, {"tenant": tenant, "row_id": row_id})
    if found != thread.agent_id:
        raise thread_not_found(thread)


def thread_not_found(thread: Thread) -> NotFoundError:
    table = schema.conversations if thread.conversation_id else schema.agents
    return not_found(table, thread.key)
