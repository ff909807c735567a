"""Everything of a tenant, deleted in transactions of a bounded number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, RunId, TenantId, new_uuid
from reattach.records.audit_log import Action, note
from reattach.records.base import Actor
from reattach.records.database import schema
from reattach.records.paging import count_within
from reattach.records.tenants.tables import DELETED, DELETED_WITH_PARENTS, is_of

BATCH_ROWS: Final = 200
"""Rows of one table that a transaction deletes, with their children."""
_BATCH_BYTES: Final = 32 << 20
"""Bytes of long texts in these rows, which SQLite overwrites in its write-ahead log."""

_NO_SECRET: Final = "none-"  # noqa: S105  no password
"""The beginning of the digest of a key that only keeps a server closed: no secret has it."""

_keys, _runs, _tokens = schema.api_keys, schema.runs, schema.stream_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows that one transaction has deleted."""

    rows: int
    logs: list[RunId] = field(default_factory=list)
    """Deleted runs whose logs are to be deleted; ``Runs.list_expired`` names them until then."""


def revoke_all(connection: Connection, tenant: TenantId, by: Actor, now: datetime) -> int:
    """Revoke the keys and tokens of the tenant, and note that its deletion begins.

    Returns the number of keys that were valid.
    """
    valid = and_(_keys.c.tenant == tenant, _keys.c.revoked_at.is_(None))
    count = connection.execute(update(_keys).where(valid).values(revoked_at=now)).rowcount
    issued = and_(_tokens.c.tenant == tenant, _tokens.c.revoked_at.is_(None))
    connection.execute(update(_tokens).where(issued).values(revoked_at=now))
    note(connection, by, Action.TENANT_DELETION_BEGUN, now, subject=tenant)
    return count


def delete_batch(
    connection: Connection, table: Table, tenant: TenantId, now: datetime, *, active_too: bool
) -> Batch:
    """Delete the first rows of the tenant in one table.

    An active run is deleted only if ``active_too``, and a conversation or agent only once its runs
    are deleted.
    """
    which = _deleted_rows(table, tenant)
    if table is _runs and not active_too:
        which = and_(which, _runs.c.status.not_in([RunStatus.CREATED, RunStatus.RUNNING]))
    if table in (schema.agents, schema.conversations):
        column = _runs.c.agent_id if table is schema.agents else _runs.c.conversation_id
        which = and_(which, ~exists().where(column == table.c.id))
    key = list(table.primary_key.columns)
    rows = select(table).where(which).limit(BATCH_ROWS)
    count = count_within(connection, rows, _BATCH_BYTES)
    found = connection.execute(
        select(*key).where(which).limit(BATCH_ROWS if count is None else count)
    ).all()
    if not found:
        return Batch(0)
    values = [tuple(row) for row in found]
    those = tuple_(*key).in_(values) if len(key) > 1 else key[0].in_([one for (one,) in values])
    logs = _abandon_logs(connection, those, now) if table is _runs else []
    if table is _keys:
        _keep_closed(connection, those, now)
    connection.execute(delete(table).where(those))
    return Batch(len(found), logs)


def _deleted_rows(table: Table, tenant: TenantId) -> ColumnElement[bool]:
    which = is_of(table, tenant)
    if table is _keys:
        which = and_(which, ~_keys.c.secret_sha256.startswith(_NO_SECRET))
    return which


def _abandon_logs(connection: Connection, those: Any, now: datetime) -> list[RunId]:
    """Schedule the logs of these runs for deletion, so that a crash leaks none."""
    abandoned = schema.abandoned_logs
    is_new = ~exists().where(abandoned.c.run_id == _runs.c.id)
    kept = select(_runs.c.id).where(those, schema.LOG_KEPT)
    new = connection.scalars(kept.where(is_new)).all()
    if new:
        rows = [{"run_id": run_id, "abandoned_at": now} for run_id in new]
        connection.execute(insert(abandoned), rows)
    return [RunId(run_id) for run_id in connection.scalars(kept)]


def _keep_closed(connection: Connection, those: Any, now: datetime) -> None:
    """Leave a revoked key of the default tenant if no other is left.

    A server without any key would be open to its machine.
    """
    if connection.scalar(select(_keys.c.id).where(~those).limit(1)) is not None:
        return
    values = {
        "id": f"key-{new_uuid()}",
        "tenant": DEFAULT_TENANT,
        "name": "keeps the server closed",
        "prefix": "",
        "secret_sha256": f"{_NO_SECRET}{new_uuid()}",
        "created_at": now,
        "revoked_at": now,
        "scope_names": (),
    }
    connection.execute(insert(_keys).values(values))


def remaining(connection: Connection, tenant: TenantId) -> Mapping[str, int]:
    """Return the number of rows of the tenant in each table that has some."""
    counts: dict[str, int] = {}
    for table in (*DELETED, *DELETED_WITH_PARENTS):
        rows = select(func.count()).select_from(table).where(_deleted_rows(table, tenant))
        count = connection.scalar(rows)
        if count:
            counts[table.name] = count
    return counts


def active_runs(connection: Connection, tenant: TenantId, limit: int) -> list[RunId]:
    """Return the ids of active runs of the tenant."""
    found = select(_runs.c.id).where(_runs.c.tenant == tenant, schema.ACTIVE, _runs.c.owner >= "")
    return [RunId(run_id) for run_id in connection.scalars(found.limit(limit))]
