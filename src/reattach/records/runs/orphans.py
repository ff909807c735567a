"""Active runs without an owner, and their takeover by another one.

A damaged row is returned without the values that cannot be read, so that recovery can still end
its run.
"""

from collections.abc import Mapping
from typing import Any, Final

import structlog
from sqlalchemy import (
    Connection,
    Select,
    String,
    bindparam,
    exists,
    func,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import DBAPIError

from reattach.domain.events import RunStatus
from reattach.domain.ids import RunId, Token
from reattach.records.base import Run, Thread
from reattach.records.database import schema
from reattach.records.runs.admission import run_of

logger = structlog.get_logger(__name__)

_runs, _owners = schema.runs, schema.owners
_ID: Final = _runs.c.id == bindparam("run_id")
_WHOLE: Final = select(_runs).where(_ID)
_PLAIN: Final = select(
    _runs.c.id,
    _runs.c.tenant,
    _runs.c.agent_id,
    _runs.c.conversation_id,
    type_coerce(_runs.c.status, String).label("status"),
    _runs.c.background,
    _runs.c.created_at,
    _runs.c.model,
    _runs.c.run_type,
    _runs.c.owner,
    _runs.c.token,
    _runs.c.cancel_requested_at,
    _runs.c.callback_url,
).where(_ID)
"""The columns whose values need no decoding."""

_after = select(_runs.c.ordinal).where(_runs.c.id == bindparam("after")).scalar_subquery()
_ORPHANS: Final[Select[Any]] = (
    select(_runs)
    .where(
        schema.ACTIVE,
        ~exists().where(_owners.c.id == _runs.c.owner),
        _runs.c.ordinal > func.coalesce(_after, 0),
    )
    .order_by(_runs.c.ordinal)
    .limit(bindparam("most"))
)
_ORPHAN_IDS: Final = _ORPHANS.with_only_columns(_runs.c.id)


def orphans(connection: Connection, after: str | None, limit: int) -> list[Run]:
    """Return active runs of all tenants whose owner is not registered, oldest first."""
    asked: Mapping[str, Any] = {"after": after, "most": limit}
    try:
        return [run_of(row) for row in connection.execute(_ORPHANS, asked).mappings()]
    except DBAPIError:
        raise
    except Exception:  # noqa: BLE001  whatever the reason, some row cannot be read
        ids = connection.execute(_ORPHAN_IDS, asked).scalars().all()
        return [readable_run(connection, run_id) for run_id in ids]


def readable_run(connection: Connection, run_id: str) -> Run:
    """Return the run with all values of its row that can be read."""
    asked = {"run_id": run_id}
    try:
        return run_of(connection.execute(_WHOLE, asked).mappings().one())
    except DBAPIError:
        raise
    except Exception:
        logger.exception("record of a run is damaged", run_id=run_id)
    row = dict(connection.execute(_PLAIN, asked).mappings().one())
    thread = Thread(row.pop("agent_id"), row.pop("conversation_id"))
    word = row.pop("status")
    status = RunStatus(word) if word in set(RunStatus) else RunStatus.FAILED
    return Run(thread=thread, status=status, input=(), **row)


def take_over(
    connection: Connection, run_id: RunId, token: Token, owner: str, step: int
) -> Run | None:
    """Make ``owner`` the owner of an active run whose token is still ``token``, and raise it."""
    taken = connection.execute(
        update(_runs)
        .where(_runs.c.id == run_id, _runs.c.token == token, schema.ACTIVE)
        .values(token=token + step, owner=owner)
    )
    return readable_run(connection, run_id) if taken.rowcount else None


def owned_run(connection: Connection, run_id: str, owner: str) -> Run | None:
    """Return the active run if ``owner`` owns it."""
    held = select(_runs.c.id).where(_runs.c.id == run_id, _runs.c.owner == owner, schema.ACTIVE)
    if connection.execute(held).scalar_one_or_none() is None:
        return None
    return readable_run(connection, run_id)
