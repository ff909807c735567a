"""Stretches of lists, by the values of a row and not by an offset, so that none is met twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
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
)
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.ids import TenantId
from reattach.domain.limits import PAGE_BYTES
from reattach.records import lookup
from reattach.records.base import Page
from reattach.records.database.columns import Typed


@dataclass(frozen=True, slots=True)
class SortOrder:
    """An order of a table's rows: by a column, then as they came to be; NULL is always last."""

    table: Table
    column: Column[Any]
    ascending: bool

    def clauses(self, *, backwards: bool) -> list[ColumnElement[Any]]:
        up = self.ascending is not backwards
        clauses: list[ColumnElement[Any]] = [
            column.asc() if up else column.desc() for column in (self.column, self._ordinal)
        ]
        if self.column.nullable:
            missing = self.column.is_(None)
            clauses.insert(0, missing.desc() if backwards else missing.asc())
        return clauses

    def after(self, row: RowMapping) -> ColumnElement[bool]:
        """What comes after the row."""
        value = self._stored(row)
        tie = self._past(self._ordinal, row["ordinal"], forwards=True)
        if value is None:
            return and_(self.column.is_(None), tie)
        past = self._past(self.column, value, forwards=True)
        following = or_(past, and_(self.column == value, tie))
        return or_(following, self.column.is_(None)) if self.column.nullable else following

    def before(self, row: RowMapping) -> ColumnElement[bool]:
        """What comes before the row."""
        value = self._stored(row)
        tie = self._past(self._ordinal, row["ordinal"], forwards=False)
        if value is None:
            return or_(self.column.is_not(None), tie)
        past = self._past(self.column, value, forwards=False)
        return or_(past, and_(self.column == value, tie))

    @property
    def _ordinal(self) -> Column[Any]:
        return self.table.c.ordinal

    def _stored(self, row: RowMapping) -> Any:
        """The row's value as the database has it, since one that is damaged has its place too."""
        if row[self.column.name] is None:
            return None
        return select(self.column).where(self._ordinal == row["ordinal"]).scalar_subquery()

    def _past(self, column: Column[Any], value: Any, *, forwards: bool) -> ColumnElement[bool]:
        past: ColumnElement[bool] = column > value if self.ascending is forwards else column < value
        return past


async def page_of(
    connection: AsyncConnection,
    rows: Select[Any],
    tenant: TenantId,
    page: Page,
    order: SortOrder,
) -> Sequence[RowMapping]:
    """The page of ``rows``, in the order.

    With ``before`` alone it is the stretch that ends there. Raises NotFoundError for a cursor
    that is not among the tenant's rows of the table.
    """
    if page.after is not None:
        row = await connection.run_sync(lookup.require, order.table, tenant, page.after)
        rows = rows.where(order.after(row))
    if page.before is not None:
        row = await connection.run_sync(lookup.require, order.table, tenant, page.before)
        rows = rows.where(order.before(row))
    backwards = page.before is not None and page.after is None
    rows = rows.order_by(*order.clauses(backwards=backwards)).limit(page.limit)
    found = await _fetched(connection, rows)
    return found[::-1] if backwards else found


async def span_of(
    connection: AsyncConnection,
    rows: Select[Any],
    place: Column[Any],
    *,
    before: int | None,
    after: int | None,
    limit: int,
    ascending: bool,
) -> Sequence[RowMapping]:
    """The rows older than place ``before`` and newer than ``after``, in absolute time.

    They adjoin a cursor that is alone, whatever the order; else they begin where the order does.
    """
    if before is not None:
        rows = rows.where(place < before)
    if after is not None:
        rows = rows.where(place > after)
    only_one = (before is None) is not (after is None)
    oldest_first = after is not None if only_one else ascending
    rows = rows.order_by(place.asc() if oldest_first else place.desc()).limit(limit)
    found = await _fetched(connection, rows)
    return found if oldest_first is ascending else found[::-1]


async def _fetched(connection: AsyncConnection, rows: Select[Any]) -> Sequence[RowMapping]:
    """Return the first of the rows that are not larger than a page together, and at least one.

    Their sizes are asked for first, so that no more is ever in memory.
    """
    wide = [column for column in rows.selected_columns if isinstance(column.type, _WIDE)]
    if wide:
        size = sum((_bytes_of(connection, column) for column in wide), start=literal(0))
        sizes = rows.with_only_columns(size, maintain_column_froms=True)
        left_bytes, count = PAGE_BYTES, 0
        for row_bytes in await connection.scalars(sizes):
            left_bytes -= row_bytes
            if left_bytes < 0 and count:
                break
            count += 1
        rows = rows.limit(count)
    found: Sequence[RowMapping] = (await connection.execute(rows)).mappings().all()
    return found


_WIDE: Final = (Text, JSON, Typed)
"""Types of columns that hold what clients and models write."""


def _bytes_of(connection: AsyncConnection, column: ColumnElement[Any]) -> ColumnElement[int]:
    if connection.dialect.name == "sqlite":
        size = func.length(cast(column, LargeBinary))  # Reads no more than the row's head.
    else:
        size = func.octet_length(cast(column, Text))
    return func.coalesce(size, 0)
