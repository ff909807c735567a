"""Look-ups in the records for the audit, which compares them with logs and run drivers.

These look-ups are for the server itself. They read plain columns only, so that no damaged row
stops them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, String, bindparam, insert, select, type_coerce

from reattach.domain.ids import RunId
from reattach.records.base import Run
from reattach.records.database import schema
from reattach.records.runs.orphans import readable_run

_runs, _abandoned = schema.runs, schema.abandoned_logs
_STANDINGS: Final = select(_runs.c.id, type_coerce(_runs.c.status, String), _runs.c.owner).where(
    _runs.c.id.in_(bindparam("run_ids", expanding=True))
)
_NOTED: Final = select(_abandoned.c.run_id).where(
    _abandoned.c.run_id.in_(bindparam("run_ids", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a run is active, and who owns it."""

    is_active: bool
    owner: str


def standings(connection: Connection, run_ids: Sequence[str]) -> dict[str, Standing]:
    """The standing of each of the runs that has a record."""
    rows = connection.execute(_STANDINGS, {"run_ids": list(run_ids)})
    return {
        run_id: Standing(status in schema.ACTIVE_STATUSES, owner) for run_id, status, owner in rows
    }


def ended_run(connection: Connection, run_id: str) -> Run | None:
    """The run, as far as its row can be read, if it has ended."""
    standing = standings(connection, [run_id]).get(run_id)
    return None if standing is None or standing.is_active else readable_run(connection, run_id)


def abandon_logs(connection: Connection, run_ids: Sequence[str], at: datetime) -> list[RunId]:
    """Let the logs of these runs, which have no record, be deleted from ``at`` on.

    Returns those that were not known to be abandoned.
    """
    noted = set(connection.execute(_NOTED, {"run_ids": list(run_ids)}).scalars())
    new = [RunId(run_id) for run_id in run_ids if run_id not in noted]
    if new:
        rows = [{"run_id": run_id, "abandoned_at": at} for run_id in new]
        connection.execute(insert(_abandoned), rows)
    return new
