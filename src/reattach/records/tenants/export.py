"""The rows of a tenant as they are exported, page by page."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, func, select

from reattach.domain.ids import RunId, TenantId
from reattach.records.audit_log import own_actors
from reattach.records.database import schema
from reattach.records.paging import fetch_page
from reattach.records.tenants.tables import (
    EXPORTED,
    EXPORTED_WITH_PARENTS,
    NOT_IN_EXPORTS,
    parents_of,
)

PAGE_ROWS: Final = 200


Line = tuple[str, dict[str, Any]]
"""The type of a row, and its columns."""


class ExportPage(NamedTuple):
    """Rows of one table, each followed by no other than the rows that belong to the page."""

    lines: Sequence[Line]
    next_after: int | None
    """The ordinal to go on after; None at the end of the table."""


def page_after(connection: Connection, table: Table, tenant: TenantId, after: int) -> ExportPage:
    """Return the next rows of the table after the ordinal, and the rows that belong to them.

    All are of one moment.
    """
    ordinal = table.c.ordinal
    rows = select(table).where(_is_of(table, tenant), ordinal > after).order_by(ordinal)
    found = fetch_page(connection, rows.limit(PAGE_ROWS))
    if not found:
        return ExportPage((), None)
    lines = [_line(EXPORTED[table], table, row) for row in found]
    if table is schema.audit_log:
        _hide_outsiders(connection, tenant, lines)
    ids = [row["id"] for row in found]
    for child, (kind, parent) in EXPORTED_WITH_PARENTS.items():
        if parent is table:
            lines.extend(_children(connection, child, kind, parent, ids))
    return ExportPage(lines, found[-1]["ordinal"])


def runs_with_logs(
    connection: Connection, tenant: TenantId, after: int, up_to: int
) -> tuple[Sequence[RunId], int | None]:
    """Return the next runs after the ordinal whose logs may exist, and the ordinal to go on after.

    No run after ``up_to``.
    """
    table = schema.runs
    which = (_is_of(table, tenant), table.c.ordinal > after, table.c.ordinal <= up_to)
    rows = select(table.c.id, table.c.ordinal).where(*which, schema.LOG_KEPT)
    found = connection.execute(rows.order_by(table.c.ordinal).limit(PAGE_ROWS)).all()
    return [RunId(row.id) for row in found], found[-1].ordinal if found else None


def _is_of(table: Table, tenant: TenantId) -> ColumnElement[bool]:
    """Return the condition for the tenant's rows of a table that is read by ordinals.

    Without an index for both, an index by tenant would sort all its rows for each page.
    """
    for index in table.indexes:
        if [column.name for column in index.columns] == ["tenant", "ordinal"]:
            return table.c.tenant == tenant
    return func.coalesce(table.c.tenant, "") == tenant


def _hide_outsiders(connection: Connection, tenant: TenantId, lines: Sequence[Line]) -> None:
    """Remove the ids and names of actors who are not of the tenant, as its audit log does."""
    entries = [values for _, values in lines]
    actors = {(values["actor_kind"], values["actor_id"]) for values in entries}
    own = own_actors(connection, tenant, actors)
    for values in entries:
        if (values["actor_kind"], values["actor_id"]) not in own:
            values["actor_id"] = values["actor_name"] = None


def _children(
    connection: Connection, child: Table, kind: str, parent: Table, ids: Sequence[str]
) -> Iterator[Line]:
    column = next(column for column, table in parents_of(child) if table is parent)
    rows = select(child).where(column.in_(ids)).order_by(*child.primary_key.columns)
    for row in connection.execute(rows).mappings():
        yield _line(kind, child, row)


def _line(kind: str, table: Table, row: RowMapping) -> Line:
    values = {
        column.name: row[column.name]
        for column in table.columns
        if column.name not in NOT_IN_EXPORTS
    }
    return kind, values
