"""Queries for the audit, which compares the records with logs and run drivers.

They read across tenants. A damaged value has a placeholder, so it stops none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select

from reattach.domain.ids import RunId
from reattach.records.base import Run
from reattach.records.database import schema
from reattach.records.runs.admission import one_run

_runs, _abandoned = schema.runs, schema.abandoned_logs
_STANDINGS: Final = select(_runs.c.id, _runs.c.status, _runs.c.owner).where(
    _runs.c.id.in_(bindparam("run_ids", expanding=True))
)
_NOTED: Final = select(_abandoned.c.run_id).where(
    _abandoned.c.run_id.in_(bindparam("run_ids", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a run is active, and its owner."""

    is_active: bool
    owner: str


def standings(connection: Connection, run_ids: Sequence[str]) -> dict[str, Standing]:
    """Return the standing of each of the runs that has a record."""
    rows = connection.execute(_STANDINGS, {"run_ids": list(run_ids)})
    return {run_id: Standing(status.is_active, owner) for run_id, status, owner in rows}


def ended_run(connection: Connection, run_id: str) -> Run | None:
    """Return the run if it has ended."""
    run = one_run(connection, select(_runs).where(_runs.c.id == run_id))
    return None if run is None or run.status.is_active else run


def abandon_logs(connection: Connection, run_ids: Sequence[str], at: datetime) -> list[RunId]:
    """Schedule the logs of these runs, which have no record, for deletion at ``at``.

    Returns the runs that were not scheduled before.
    """
    noted = set(connection.execute(_NOTED, {"run_ids": list(run_ids)}).scalars())
    new = [RunId(run_id) for run_id in run_ids if run_id not in noted]
    if new:
        rows = [{"run_id": run_id, "abandoned_at": at} for run_id in new]
        connection.execute(insert(_abandoned), rows)
    return new
