"""Runs as operators look for them: of one tenant or of all, the newest first."""

import builtins
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    Select,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
)

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, RunId, TenantId, is_run_id
from reattach.records.base import Run, RunError, Target
from reattach.records.database import schema
from reattach.records.database.columns import Moment
from reattach.records.database.prepared import PreparedStatement, Row
from reattach.records.lookup import not_found
from reattach.records.repository import Repository
from reattach.records.runs.admission import run_of
from reattach.records.runs.lists.pages import unindexed

SEARCHED_RUNS: Final = 20_000
"""The newest runs among which those with some text or model are found."""

COUNTED_RUNS: Final = 10_000
"""Above this number, runs are not counted."""

_runs, _agents = schema.runs, schema.agents

_UNSUCCESSFUL: Final = frozenset({RunStatus.FAILED, RunStatus.CANCELLED})
_ACTIVE: Final = frozenset(status for status in RunStatus if status.is_active)

_COLUMNS: Final = (
    _runs.c.id,
    _runs.c.tenant,
    _runs.c.status,
    _runs.c.stop_reason,
    _runs.c.agent_id,
    _agents.c.name.label("agent_name"),
    _runs.c.conversation_id,
    _runs.c.model,
    _runs.c.background,
    _runs.c.created_at,
    _runs.c.completed_at,
    _runs.c.first_event_at,
    _runs.c.event_count,
    _runs.c.log_bytes,
    _runs.c.attempts,
    _runs.c.owner,
    _runs.c.cancel_requested_at,
    _runs.c.input_text,
    _runs.c.error,
)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """The runs that are looked for. A member that is None or empty does not filter."""

    tenant: TenantId | None = None
    statuses: Collection[RunStatus] = ()
    agent_id: AgentId | None = None
    conversation_id: ConversationId | None = None
    model: str | None = None
    text: str | None = None
    """A part of an id, or of the beginning of the input."""

    @property
    def is_indexed(self) -> bool:
        """Whether indexes find the runs without looking at others."""
        return not (self.statuses or self.model or self.text)


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a list, without its input and plan."""

    id: RunId
    tenant: TenantId
    status: RunStatus
    stop_reason: StopReason | None
    agent_id: AgentId
    agent_name: str | None
    """None if the name cannot be read."""
    conversation_id: ConversationId | None
    model: str | None
    background: bool
    created_at: datetime
    completed_at: datetime | None
    first_event_at: datetime | None
    event_count: int | None
    log_bytes: int | None
    attempts: int
    owner: str
    cancel_requested_at: datetime | None
    input_text: str | None
    error: RunError | None

    @property
    def target(self) -> Target:
        return Target(self.id, self.tenant, self.status, background=self.background)


class RunsLook(NamedTuple):
    """A page of runs, and numbers of all."""

    lines: list[RunLine]
    active: int
    """The number of runs that have not ended, whatever is looked for."""
    total: int | None
    """The number of runs that are looked for; None if there are more than COUNTED_RUNS, or if no
    index counts them."""


class Overview(Repository):
    """Lists runs, also across tenants; None for a tenant means all."""

    async def list(
        self, wanted: RunFilter, *, limit: int, after: str | None
    ) -> builtins.list[RunLine]:
        """Return at most ``limit`` runs that came before the run ``after``, the newest first.

        With a model or a text they are looked for among the newest SEARCHED_RUNS only.

        Raises:
            NotFoundError: There is no run ``after`` for the tenant.
        """
        return await self._database.in_read(_lines, wanted, limit, after)

    async def look(
        self, wanted: RunFilter, *, tenant: TenantId | None, limit: int, after: str | None
    ) -> RunsLook:
        """Return the page of ``list`` with the number of its runs and of those active, at once.

        ``tenant`` is the one whose active runs are counted. Raises NotFoundError as ``list`` does.
        """

        def read(connection: Connection) -> RunsLook:
            return RunsLook(
                _lines(connection, wanted, limit, after),
                _count_active(connection, tenant),
                _count(connection, wanted),
            )

        return await self._database.in_read(read)

    async def get(self, tenant: TenantId | None, run_id: str) -> tuple[RunLine, Run]:
        """Return the run. Raises NotFoundError if the tenant has none with this id."""

        def read(connection: Connection) -> tuple[RunLine, Run]:
            found = _find(connection, tenant, run_id)
            line = _with_agents(select(*_COLUMNS)).where(_runs.c.id == run_id)
            return _line(connection.execute(line).mappings().one()), run_of(found)

        return await self._database.in_read(read)

    async def count_active(self, tenant: TenantId | None) -> int:
        """Count the runs that have not ended."""
        return await self._database.in_read(_count_active, tenant)

    async def count(self, wanted: RunFilter) -> int | None:
        """Count the runs; None if there are more than COUNTED_RUNS, or if no index counts them."""
        return await self._database.in_read(_count, wanted)


def _lines(
    connection: Connection, wanted: RunFilter, limit: int, after: str | None
) -> list[RunLine]:
    values: dict[str, object] = {"limit": limit}
    if after is not None:
        last = _find(connection, wanted.tenant, after)
        values |= {"last_created_at": last["created_at"], "last_ordinal": last["ordinal"]}
    rows = _prepared_page(_hashable(wanted), after is not None).mappings(connection, values)
    return [_line(row) for row in rows]


def _count_active(connection: Connection, tenant: TenantId | None) -> int:
    values = {} if tenant is None else {"tenant": tenant}
    found: int = _ACTIVE_COUNT[tenant is not None].value(connection, values)
    return found


def _count(connection: Connection, wanted: RunFilter) -> int | None:
    if not wanted.is_indexed:
        return None
    asked = {"limit": COUNTED_RUNS + 1}
    found: int = _prepared_count(_hashable(wanted)).value(connection, asked)
    return None if found > COUNTED_RUNS else found


def _hashable(wanted: RunFilter) -> RunFilter:
    return replace(wanted, statuses=frozenset(wanted.statuses))


# Pages that show the runs ask for the same list again and again.
@lru_cache(maxsize=64)
def _prepared_page(wanted: RunFilter, has_last: bool) -> PreparedStatement:
    return PreparedStatement(_page(wanted, has_last=has_last))


@lru_cache(maxsize=64)
def _prepared_count(wanted: RunFilter) -> PreparedStatement:
    limit = bindparam("limit", type_=Integer)
    some = select(_runs.c.ordinal).where(*_conditions(wanted)).limit(limit)
    return PreparedStatement(select(func.count().label("runs")).select_from(some.subquery()))


def _find(connection: Connection, tenant: TenantId | None, run_id: str) -> RowMapping:
    rows = select(_runs).where(_runs.c.id == run_id)
    if tenant is not None:
        rows = rows.where(_runs.c.tenant == tenant)
    row = connection.execute(rows).mappings().one_or_none()
    if row is None:
        raise not_found(_runs, run_id)
    return row


def _page(wanted: RunFilter, *, has_last: bool) -> Select[Any]:
    """Select the lines of a page, which begins after a row if ``has_last``."""
    conditions, limit = _conditions(wanted), bindparam("limit", type_=Integer)
    if has_last:
        conditions.append(_is_before(wanted))
    order = [column.desc() for column in _order(wanted)]
    if not wanted.model and not wanted.text:
        rows = _with_agents(select(*_COLUMNS)).where(*conditions)
        return rows.order_by(*order).limit(limit)
    newest = select(_runs.c.ordinal).where(*conditions)
    searched = newest.order_by(*order).limit(SEARCHED_RUNS).subquery()
    rows = _with_agents(select(*_COLUMNS)).join(searched, searched.c.ordinal == _runs.c.ordinal)
    return rows.where(*_searches(wanted)).order_by(*order).limit(limit)


def _with_agents(rows: Select[Any]) -> Select[Any]:
    return rows.select_from(_runs).outerjoin(_agents, _agents.c.id == _runs.c.agent_id)


def _conditions(wanted: RunFilter) -> list[ColumnElement[bool]]:
    """Return the conditions that do not look into a run."""
    found: list[ColumnElement[bool]] = []
    has_index = _is_within(wanted, _UNSUCCESSFUL) or _is_within(wanted, _ACTIVE)
    for column, value in (
        (_runs.c.tenant, wanted.tenant),
        (_runs.c.agent_id, wanted.agent_id),
        (_runs.c.conversation_id, wanted.conversation_id),
    ):
        if value is not None:
            found.append((unindexed(column) if has_index else column) == value)
    if wanted.text is not None and is_run_id(wanted.text):
        found.append(_runs.c.id == wanted.text)
    if wanted.statuses:
        found.append(_runs.c.status.in_([literal(one.value) for one in sorted(wanted.statuses)]))
        if _is_within(wanted, _UNSUCCESSFUL):
            found.append(schema.UNSUCCESSFUL)  # type: ignore[arg-type]  # the partial index has it
        elif _is_within(wanted, _ACTIVE):
            found.append(schema.ACTIVE)  # type: ignore[arg-type]
    return found


def _searches(wanted: RunFilter) -> list[ColumnElement[bool]]:
    """Return the conditions that look into a run."""
    found: list[ColumnElement[bool]] = []
    if wanted.model:
        found.append(_runs.c.model == wanted.model)
    if wanted.text and not is_run_id(wanted.text):
        columns = (_runs.c.id, _runs.c.conversation_id, _runs.c.agent_id, _runs.c.input_text)
        found.append(or_(*(one.icontains(wanted.text, autoescape=True) for one in columns)))
    return found


def _order(wanted: RunFilter) -> list[Column[Any]]:
    """Return the columns that order the list, which the best index of the filter has too.

    The active runs are few, and SQLite finds them by their index only if it has to sort them.
    """
    is_listed_alone = wanted.tenant is None and wanted.agent_id is None
    if _is_within(wanted, _UNSUCCESSFUL) or (is_listed_alone and not _is_within(wanted, _ACTIVE)):
        return [_runs.c.ordinal]
    return [_runs.c.created_at, _runs.c.ordinal]


def _is_before(wanted: RunFilter) -> ColumnElement[bool]:
    ordinal: ColumnElement[bool] = _runs.c.ordinal < bindparam("last_ordinal")
    if len(_order(wanted)) == 1:
        return ordinal
    created_at, at = _runs.c.created_at, bindparam("last_created_at", type_=Moment)
    return and_(created_at <= at, or_(created_at < at, ordinal))


def _is_within(wanted: RunFilter, statuses: Collection[RunStatus]) -> bool:
    """Return whether all wanted runs have one of these statuses, for which there is an index."""
    return bool(wanted.statuses) and set(wanted.statuses) <= set(statuses)


_active: Final = select(func.count().label("runs")).select_from(_runs).where(schema.ACTIVE)
_ACTIVE_COUNT: Final = {
    False: PreparedStatement(_active),
    True: PreparedStatement(_active.where(unindexed(_runs.c.tenant) == bindparam("tenant"))),
}
"""The query for the number of active runs, by whether they are those of one tenant."""


def _line(row: Row) -> RunLine:
    values = {**row, "attempts": len(row["attempts"]) + 1}
    return RunLine(**values)
