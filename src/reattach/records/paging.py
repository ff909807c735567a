"""Pages of lists.

A page is found by the values of a row and not by an offset, so no row comes twice or is skipped
when others are added.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    RowMapping,
    Select,
    Table,
    Text,
    and_,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from reattach.domain.ids import TenantId
from reattach.domain.limits.requests import PAGE_BYTES
from reattach.records import lookup
from reattach.records.base import Page
from reattach.records.database.columns import LongText, Typed
from reattach.records.database.prepared import PreparedStatement, Row, Values


@dataclass(frozen=True, slots=True)
class SortOrder:
    """An order of a table's rows: by a column, then by creation. NULL is always last."""

    table: Table
    column: Column[Any]
    ascending: bool

    def clauses(self, *, backwards: bool) -> list[ColumnElement[Any]]:
        """Return the ORDER BY clauses."""
        up = self.ascending is not backwards
        clauses: list[ColumnElement[Any]] = [
            column.asc() if up else column.desc() for column in (self.column, self._ordinal)
        ]
        if self.column.nullable:
            missing = self.column.is_(None)
            clauses.insert(0, missing.desc() if backwards else missing.asc())
        return clauses

    def after(self, row: Row) -> ColumnElement[bool]:
        """Return the condition for rows that come after this one."""
        if row[self.column.name] is None:
            tie = (
                self._ordinal > row["ordinal"] if self.ascending else self._ordinal < row["ordinal"]
            )
            return and_(self.column.is_(None), tie)
        following = self._past(row, forwards=True)
        return or_(following, self.column.is_(None)) if self.column.nullable else following

    def before(self, row: Row) -> ColumnElement[bool]:
        """Return the condition for rows that come before this one."""
        if row[self.column.name] is None:
            tie = (
                self._ordinal < row["ordinal"] if self.ascending else self._ordinal > row["ordinal"]
            )
            return or_(self.column.is_not(None), tie)
        return self._past(row, forwards=False)

    @property
    def _ordinal(self) -> Column[Any]:
        return self.table.c.ordinal

    def _past(self, row: Row, *, forwards: bool) -> ColumnElement[bool]:
        """Return the condition for rows on one side of this one, in one comparison for an index.

        The row's value is the stored one: a damaged value has a place too.
        """
        place = (self.column, self._ordinal)
        of_row = select(*place).where(self._ordinal == row["ordinal"]).scalar_subquery()
        return self._is_past(tuple_(*place), of_row, forwards=forwards)

    def _is_past(
        self, one: ColumnElement[Any], other: Any, *, forwards: bool
    ) -> ColumnElement[bool]:
        past: ColumnElement[bool] = one > other if self.ascending is forwards else one < other
        return past


def page_of(
    connection: Connection,
    rows: Select[Any],
    tenant: TenantId,
    page: Page,
    order: SortOrder,
) -> Sequence[RowMapping]:
    """Return the page of ``rows``; with ``before`` alone, the page that ends there.

    Raises NotFoundError for a cursor that is not among the tenant's rows of the table.
    """
    if page.after is not None:
        row = lookup.require(connection, order.table, tenant, page.after)
        rows = rows.where(order.after(row))
    if page.before is not None:
        row = lookup.require(connection, order.table, tenant, page.before)
        rows = rows.where(order.before(row))
    backwards = page.before is not None and page.after is None
    rows = rows.order_by(*order.clauses(backwards=backwards)).limit(page.limit)
    found = fetch_page(connection, rows)
    return found[::-1] if backwards else found


class PageSizes:
    """The sizes of the first rows of a query, by a prepared statement.

    They are read before the rows, so that rows larger than a page are never in memory.
    """

    def __init__(self, rows: Select[Any]) -> None:
        """``rows`` end at the parameter ``limit``."""
        self._sizes = {
            dialect: PreparedStatement(sizes)
            for dialect in _SIZES
            if (sizes := _sizes_of(dialect, rows)) is not None
        }

    def count(self, connection: Connection, values: Values) -> int:
        """Return how many of the rows fit in a page together, and at least one if there is any."""
        limit: int = values["limit"]
        sizes = self._sizes.get(connection.dialect.name)
        if sizes is None or limit < 2:
            return limit
        return _count_within((size for (size,) in sizes.rows(connection, values)), PAGE_BYTES)


class PreparedRows:
    """The first rows of a query that fit in a page together, by prepared statements."""

    def __init__(self, rows: Select[Any]) -> None:
        """``rows`` end at the parameter ``limit``."""
        self._sizes = PageSizes(rows)
        self._rows = PreparedStatement(rows)

    def read(self, connection: Connection, values: Values, limit: int) -> list[list[Any]]:
        """Return at most ``limit`` rows, and at least one if there is any."""
        count = self._sizes.count(connection, {**values, "limit": limit})
        return self._rows.rows(connection, {**values, "limit": count})


def fetch_page(connection: Connection, rows: Select[Any]) -> Sequence[RowMapping]:
    """Return the first rows that fit in a page together, and at least one.

    A query for their sizes comes first, so that larger pages are never in memory.
    """
    count = count_within(connection, rows, PAGE_BYTES)
    if count is not None:
        rows = rows.limit(count)
    return connection.execute(rows).mappings().all()


def count_within(connection: Connection, rows: Select[Any], most_bytes: int) -> int | None:
    """Return how many of the first rows have at most so many bytes together, at least one.

    None if they have no columns for long texts.
    """
    sizes = _sizes_of(connection.dialect.name, rows)
    return None if sizes is None else _count_within(connection.scalars(sizes), most_bytes)


def _count_within(sizes: Iterable[int], most_bytes: int) -> int:
    count = 0
    for row_bytes in sizes:
        most_bytes -= row_bytes
        if most_bytes < 0 and count:
            break
        count += 1
    return count


_WIDE: Final = (LongText, JSON, Typed)
"""Types of the columns that hold the texts of clients and models."""


def _sizes_of(dialect: str, rows: Select[Any]) -> Select[Any] | None:
    """Return the query for the sizes of the rows; None if they have no columns for long texts."""
    wide = [column for column in rows.selected_columns if isinstance(column.type, _WIDE)]
    if not wide:
        return None
    parts = (func.coalesce(_SIZES[dialect](column), 0) for column in wide)
    size = sum(parts, start=literal(0))
    return rows.with_only_columns(size.label("size"), maintain_column_froms=True)


_SIZES: Final[Mapping[str, Callable[[ColumnElement[Any]], ColumnElement[int]]]] = {
    "sqlite": lambda column: func.length(cast(column, LargeBinary)),  # Reads only the row's header.
    "postgresql": lambda column: func.octet_length(cast(column, Text)),
}
"""The size of a value in bytes, by the kind of the database."""
