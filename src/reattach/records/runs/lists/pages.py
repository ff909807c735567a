"""Pages of the runs of a tenant, by statements that are prepared for each set of filters."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import Column, ColumnElement, Connection, Integer, Select, bindparam, select, tuple_

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, TenantId
from reattach.records import lookup
from reattach.records.base import Page
from reattach.records.database import schema
from reattach.records.paging import PreparedRows

MOST_FORMS: Final = 64
"""The statements that are kept for a list. Few of the possible ones are ever asked for."""

_runs: Final = schema.runs
_INDEXED: Final = frozenset({"agent_id", "conversation_id"})
"""Columns with an index that finds fewer runs than that of a tenant."""
_ORDER: Final = (_runs.c.created_at, _runs.c.ordinal)


@dataclass(frozen=True, slots=True)
class RunFilters:
    """The runs that are listed."""

    equal: Mapping[str, object] = field(default_factory=dict)
    """Values of columns; None stands for runs without a value."""
    among: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """Values of columns, of which a run has one."""
    active_only: bool = False


def run_filters(
    *,
    agent_ids: Collection[AgentId] = (),
    statuses: Collection[RunStatus] = (),
    background: bool | None = None,
    stop_reason: StopReason | None = None,
    conversation_id: ConversationId | Literal["default"] | None = None,
    active_only: bool = False,
) -> RunFilters:
    """Return filters of which those that are empty or None do not filter.

    The conversation ``"default"`` stands for all runs without a named conversation.
    """
    equal: dict[str, object] = {}
    if background is not None:
        equal["background"] = background
    if stop_reason is not None:
        equal["stop_reason"] = stop_reason
    if conversation_id is not None:
        equal["conversation_id"] = None if conversation_id == "default" else conversation_id
    among: dict[str, Sequence[object]] = {"agent_id": sorted(agent_ids), "status": sorted(statuses)}
    equal |= {name: values[0] for name, values in among.items() if len(values) == 1}
    several = {name: values for name, values in among.items() if len(values) > 1}
    return RunFilters(equal, several, active_only)


@dataclass(frozen=True, slots=True)
class Form:
    """Everything in which the statements of a list differ, except for their values."""

    equal: tuple[str, ...]
    empty: tuple[str, ...]
    among: tuple[tuple[str, int], ...]
    active_only: bool
    ascending: bool
    has_after: bool
    has_before: bool

    @property
    def backwards(self) -> bool:
        """Whether the page is the one that ends at a run."""
        return self.has_before and not self.has_after


class RunPages:
    """A list of runs with some of their columns, in the order of their creation."""

    def __init__(self, *columns: Column[Any]) -> None:
        self._columns = columns
        self._prepared: dict[Form, PreparedRows] = {}

    def read(
        self, connection: Connection, tenant: TenantId, page: Page, filters: RunFilters
    ) -> list[list[Any]]:
        """Return the values of the page; with ``before`` alone, of the one that ends there.

        Raises NotFoundError for a cursor that is not among the tenant's runs.
        """
        for cursor in (page.after, page.before):
            if cursor is not None:
                lookup.require_id(connection, _runs, tenant, cursor)
        form, values = form_of(page, filters)
        values |= {"tenant": tenant}
        rows = self._rows(form).read(connection, values, page.limit)
        return rows[::-1] if form.backwards else rows

    def _rows(self, form: Form) -> PreparedRows:
        prepared = self._prepared.get(form)
        if prepared is None:
            if len(self._prepared) >= MOST_FORMS:
                self._prepared.clear()
            prepared = self._prepared[form] = PreparedRows(statement_of(form, self._columns))
        return prepared


def form_of(page: Page, filters: RunFilters) -> tuple[Form, dict[str, object]]:
    """Return the form of the statement for a page, and the values of its parameters."""
    equal = {name: value for name, value in filters.equal.items() if value is not None}
    form = Form(
        equal=tuple(equal),
        empty=tuple(name for name in filters.equal if name not in equal),
        among=tuple((name, len(values)) for name, values in filters.among.items()),
        active_only=filters.active_only,
        ascending=page.ascending,
        has_after=page.after is not None,
        has_before=page.before is not None,
    )
    values = equal | {"after": page.after, "before": page.before}
    for name, some in filters.among.items():
        values |= {f"{name}_{place}": value for place, value in enumerate(some)}
    return form, values


def statement_of(form: Form, columns: Sequence[Column[Any]]) -> Select[Any]:
    has_better_index = not _INDEXED.isdisjoint(form.equal)
    tenant = unindexed(_runs.c.tenant) if has_better_index else _runs.c.tenant
    rows = select(*columns).where(tenant == bindparam("tenant"))
    for name in form.equal:
        rows = rows.where(_runs.c[name] == bindparam(name))
    for name in form.empty:
        rows = rows.where(_runs.c[name].is_(None))
    for name, count in form.among:
        column = _runs.c[name]
        some = [bindparam(f"{name}_{place}", type_=column.type) for place in range(count)]
        rows = rows.where(column.in_(some))
    if form.active_only:
        rows = rows.where(schema.ACTIVE)
    # Values of a row are compared with it as they are stored: a damaged one has a place too.
    own = tuple_(*_ORDER)
    for cursor, is_given, is_newer in (
        ("after", form.has_after, form.ascending),
        ("before", form.has_before, not form.ascending),
    ):
        if is_given:
            other = select(*_ORDER).where(_runs.c.id == bindparam(cursor)).scalar_subquery()
            rows = rows.where(own > other if is_newer else own < other)
    is_upwards = form.ascending is not form.backwards
    order = (column.asc() if is_upwards else column.desc() for column in _ORDER)
    return rows.order_by(*order).limit(bindparam("limit", type_=Integer))


def unindexed(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return the column as a value of which SQLite has no index.

    It would rather read all runs of a tenant than the few in a better index.
    """
    return column.concat("")
