"""Changes of an active run by its owner, whose fencing token they check."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, bindparam, update

from reattach.domain.ids import RunId, Token
from reattach.records.base import LogSummary
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Query
from reattach.records.runs import timelines
from reattach.records.runs.notifications import RunReleased, notify
from reattach.records.runs.settlement import FIRST_EVENT_AT

_MARK: Final = update(schema.runs).where(
    schema.runs.c.id == bindparam("run_id"),
    schema.runs.c.token == bindparam("held_token"),
    schema.ACTIVE,
)
_HAND_OVER: Final = _MARK.values(first_event_at=FIRST_EVENT_AT)


@cache
def _setting(*columns: str) -> PreparedStatement:
    return PreparedStatement(_MARK, *columns)


def marking(run_id: RunId, token: Token, values: Mapping[str, Any]) -> Query:
    """Return the statement of ``mark_active``."""
    return _setting(*values), {"run_id": run_id, "held_token": token, **values}


def mark_active(
    connection: Connection, run_id: RunId, token: Token, values: Mapping[str, Any]
) -> bool:
    """Set these columns of the run; False if it has ended or its token is another one."""
    statement, asked = marking(run_id, token, values)
    return statement.run(connection, asked) > 0


def release(
    connection: Connection,
    run_id: RunId,
    token: Token,
    values: Mapping[str, Any],
    log: LogSummary | None,
) -> bool:
    """Set these columns of the run as its owner gives it up, and notify all processes.

    Returns False and changes nothing if it has ended or its token is another one.
    """
    asked = {"run_id": run_id, "held_token": token, **values}
    asked["begun_at"] = None if log is None else log.first_event_at
    is_free = connection.execute(_HAND_OVER, asked).rowcount > 0
    if is_free and log is not None and log.commits is not None:
        timelines.keep(connection, run_id, token, log.commits)
    if is_free:
        notify(connection, RunReleased(run_id))
    return is_free
