"""Active runs without an owner, and their takeover by another one."""

from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, exists, func, select, update

from reattach.domain.ids import RunId, Token
from reattach.records.base import Run
from reattach.records.database import schema
from reattach.records.runs.admission import one_run, run_of

_runs, _owners = schema.runs, schema.owners
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


def orphans(connection: Connection, after: str | None, limit: int) -> list[Run]:
    """Return active runs of all tenants whose owner is not registered, oldest first."""
    found = connection.execute(_ORPHANS, {"after": after, "most": limit})
    return [run_of(row) for row in found.mappings()]


def take_over(
    connection: Connection, run_id: RunId, token: Token, owner: str, step: int
) -> Run | None:
    """Make ``owner`` the owner of an active run whose token is still ``token``, and raise it."""
    taken = (
        update(_runs)
        .where(_runs.c.id == run_id, _runs.c.token == token, schema.ACTIVE)
        .values(token=token + step, owner=owner)
        .returning(_runs)
    )
    return one_run(connection, taken)


def owned_run(connection: Connection, run_id: str, owner: str) -> Run | None:
    """Return the active run if ``owner`` owns it."""
    held = select(_runs).where(_runs.c.id == run_id, _runs.c.owner == owner, schema.ACTIVE)
    return one_run(connection, held)
