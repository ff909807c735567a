"""The tenants of a database, and how much of it each uses.

No query reads all runs of a tenant: active runs have an index of their own, and the others are
counted from yesterday on. The counts of agents and conversations grow with their number.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BindParameter,
    ColumnElement,
    Connection,
    Table,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    type_coerce,
    union_all,
)

from reattach.domain.ids import TenantId
from reattach.records import lookup
from reattach.records.database import schema
from reattach.records.database.columns import Moment

_DAY: Final = timedelta(days=1)

_agents, _conversations = schema.agents, schema.conversations
_keys, _runs = schema.api_keys, schema.runs

_NAMING: Final = (schema.agents, schema.api_keys, schema.blocks, schema.runs)
"""The tables of which one has a row of every tenant, each with an index by tenant or few rows."""


@dataclass(frozen=True, slots=True)
class Use:
    """The rows of one tenant."""

    tenant: TenantId
    agents: int
    conversations: int
    keys: int
    """Keys that are neither revoked nor expired."""
    active_runs: int
    runs_last_day: int
    prompt_tokens_last_day: int
    """Tokens of the ended ones among these runs."""
    completion_tokens_last_day: int
    last_run_at: datetime | None


def tenants_after(connection: Connection, after: str, limit: int) -> list[TenantId]:
    """Return the next tenants in the order of their ids.

    Each is one step in the indexes, so that the number of rows of a tenant does not matter.
    """
    found: list[TenantId] = []
    while len(found) < limit:
        tenant = connection.scalar(_NEXT, {"after": found[-1] if found else after})
        if tenant is None:
            break
        found.append(TenantId(tenant))
    return found


def _next_of(table: Table) -> Any:
    return select(func.min(table.c.tenant).label("tenant")).where(
        table.c.tenant > bindparam("after")
    )


_EACH: Final = union_all(*(_next_of(table) for table in _NAMING)).subquery()
_NEXT: Final = select(func.min(_EACH.c.tenant))


def uses_of(connection: Connection, tenants: Sequence[TenantId], now: datetime) -> list[Use]:
    """Return the use of each of the tenants."""
    active = _active_runs(connection)
    return [_use_of(connection, tenant, active[tenant], now) for tenant in tenants]


def _active_runs(connection: Connection) -> Counter[str]:
    # The condition on the owner, which is always true, lets SQLite use the index of active runs.
    found = select(_runs.c.tenant).where(schema.ACTIVE, _runs.c.owner >= "")
    return Counter(connection.scalars(found))


def _use_of(connection: Connection, tenant: TenantId, active: int, now: datetime) -> Use:
    asked = {"tenant": tenant, "now": now, "since": now - _DAY}
    recent = connection.execute(_recent(connection), asked).one()
    return Use(
        tenant,
        agents=connection.scalar(_AGENTS, asked) or 0,
        conversations=connection.scalar(_CONVERSATIONS, asked) or 0,
        keys=connection.scalar(_VALID_KEYS, asked) or 0,
        active_runs=active,
        runs_last_day=recent.runs,
        prompt_tokens_last_day=int(recent.prompt or 0),
        completion_tokens_last_day=int(recent.completion or 0),
        last_run_at=connection.scalar(_LAST_RUN, asked),
    )


def _count(table: Table, *conditions: ColumnElement[bool]) -> Any:
    return select(func.count()).select_from(table).where(*conditions)


_tenant: Final[BindParameter[str]] = bindparam("tenant")
_AGENTS: Final = _count(_agents, _agents.c.tenant == _tenant)
_CONVERSATIONS: Final = _count(_conversations, lookup.visible(_conversations, _tenant))
_VALID_KEYS: Final = _count(
    _keys,
    _keys.c.tenant == _tenant,
    _keys.c.revoked_at.is_(None),
    or_(_keys.c.expires_at.is_(None), _keys.c.expires_at > bindparam("now", type_=Moment)),
)
_LAST_RUN: Final = (
    select(_runs.c.created_at)
    .where(_runs.c.tenant == _tenant)
    .order_by(_runs.c.created_at.desc(), _runs.c.ordinal.desc())
    .limit(1)
)


def _recent(connection: Connection) -> Any:
    return _RECENT[connection.dialect.name]


def _recent_on(dialect: str) -> Any:
    usage = type_coerce(_runs.c.usage, JSON)
    if dialect == "sqlite":  # Which keeps any text in the column, and fails on what is no JSON.
        usage = type_coerce(case((func.json_valid(_runs.c.usage), _runs.c.usage)), JSON)
    return select(
        func.count().label("runs"),
        func.sum(usage["prompt_tokens"].as_integer()).label("prompt"),
        func.sum(usage["completion_tokens"].as_integer()).label("completion"),
    ).where(and_(_runs.c.tenant == _tenant, _runs.c.created_at > bindparam("since", type_=Moment)))


_RECENT: Final[Mapping[str, Any]] = {name: _recent_on(name) for name in ("sqlite", "postgresql")}
