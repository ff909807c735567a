"""Runs as operators look for them: of one tenant or of all, the newest first."""

import builtins
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    func,
    or_,
    select,
)

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, RunId, TenantId, is_run_id
from reattach.records.base import Run, RunError, Target
from reattach.records.database import schema
from reattach.records.lookup import not_found
from reattach.records.repository import Repository
from reattach.records.runs.admission import run_of

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

        def read(connection: Connection) -> builtins.list[RunLine]:
            last = None if after is None else _find(connection, wanted.tenant, after)
            rows = connection.execute(_page(wanted, last, limit))
            return [_line(row) for row in rows.mappings()]

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
        active = select(func.count()).select_from(_runs).where(schema.ACTIVE)
        if tenant is not None:
            active = active.where(_unindexed(_runs.c.tenant) == tenant)
        return await self._count(active)

    async def count(self, wanted: RunFilter) -> int | None:
        """Count the runs; None if there are more than COUNTED_RUNS, or if no index counts them."""
        if not wanted.is_indexed:
            return None
        some = select(_runs.c.ordinal).where(*_conditions(wanted)).limit(COUNTED_RUNS + 1)
        found = await self._count(select(func.count()).select_from(some.subquery()))
        return None if found > COUNTED_RUNS else found

    async def _count(self, statement: Select[Any]) -> int:
        def read(connection: Connection) -> int:
            found: int = connection.execute(statement).scalar_one()
            return found

        return await self._database.in_read(read)


def _find(connection: Connection, tenant: TenantId | None, run_id: str) -> RowMapping:
    rows = select(_runs).where(_runs.c.id == run_id)
    if tenant is not None:
        rows = rows.where(_runs.c.tenant == tenant)
    row = connection.execute(rows).mappings().one_or_none()
    if row is None:
        raise not_found(_runs, run_id)
    return row


def _page(wanted: RunFilter, last: RowMapping | None, limit: int) -> Select[Any]:
    """Select the lines of a page, which begins after the row ``last``."""
    conditions = _conditions(wanted)
    if last is not None:
        conditions.append(_is_before(wanted, last))
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
            found.append((_unindexed(column) if has_index else column) == value)
    if wanted.text is not None and is_run_id(wanted.text):
        found.append(_runs.c.id == wanted.text)
    if wanted.statuses:
        found.append(_runs.c.status.in_(wanted.statuses))
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


def _is_before(wanted: RunFilter, last: RowMapping) -> ColumnElement[bool]:
    ordinal: ColumnElement[bool] = _runs.c.ordinal < last["ordinal"]
    if len(_order(wanted)) == 1:
        return ordinal
    created_at, at = _runs.c.created_at, last["created_at"]
    return and_(created_at <= at, or_(created_at < at, ordinal))


def _is_within(wanted: RunFilter, statuses: Collection[RunStatus]) -> bool:
    """Return whether all wanted runs have one of these statuses, for which there is an index."""
    return bool(wanted.statuses) and set(wanted.statuses) <= set(statuses)


def _unindexed(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return the column as a value of which SQLite has no index.

    It would rather read all runs of a tenant than the few in a partial index.
    """
    return column.concat("")


def _line(row: RowMapping) -> RunLine:
    values = {**row, "attempts": len(row["attempts"]) + 1}
    return RunLine(**values)
