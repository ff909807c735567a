"""Readers that were cut off before the end of their run, kept as long as its events are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select

from reattach.domain.errors import ReattachError
from reattach.domain.ids import RunId, Seq
from reattach.records.database import schema
from reattach.records.database.database import lost_a_race
from reattach.records.repository import Repository

MAX_CUT_OFFS: Final = 100
"""The newest ones that are kept for a run."""

_cut_offs, _runs = schema.cut_offs, schema.runs
_KEPT_RUNS: Final = select(_runs.c.id).where(
    _runs.c.id.in_(bindparam("run_ids", expanding=True)), schema.LOG_KEPT
)
_INSERT: Final = insert(_cut_offs)
_OF_RUN: Final = (
    select(_cut_offs)
    .where(_cut_offs.c.run_id == bindparam("run_id"))
    .order_by(_cut_offs.c.at, _cut_offs.c.ordinal)
)
_last_kept = (
    select(_cut_offs.c.ordinal)
    .where(_cut_offs.c.run_id == bindparam("of_run"))
    .order_by(_cut_offs.c.ordinal.desc())
    .limit(1)
    .offset(MAX_CUT_OFFS)
    .scalar_subquery()
)
_TRIM: Final = delete(_cut_offs).where(
    _cut_offs.c.run_id == bindparam("of_run"), _cut_offs.c.ordinal <= _last_kept
)
_DELETE: Final = delete(_cut_offs).where(
    _cut_offs.c.run_id.in_(bindparam("run_ids", expanding=True))
)


@dataclass(frozen=True, slots=True)
class KeptCutOff:
    """A reader that was cut off."""

    run_id: RunId
    at: datetime
    reason: str
    cursor: Seq
    """The last event that it was sent."""
    client: str
    transport: str
    process: str
    """The process that served it, by its id as an owner."""


_FIELDS: Final = tuple(field.name for field in fields(KeptCutOff))


def forget(connection: Connection, run_ids: list[RunId]) -> None:
    """Delete what is kept of these runs."""
    connection.execute(_DELETE, {"run_ids": run_ids})


def _add(connection: Connection, cut_offs: Sequence[KeptCutOff]) -> None:
    run_ids = sorted({one.run_id for one in cut_offs})
    kept = set(connection.scalars(_KEPT_RUNS, {"run_ids": run_ids}))
    if rows := [asdict(one) for one in cut_offs if one.run_id in kept]:
        connection.execute(_INSERT, rows)
        connection.execute(_TRIM, [{"of_run": run_id} for run_id in sorted(kept)])


class CutOffs(Repository):
    """The newest readers of each run that were cut off."""

    async def add(self, cut_offs: Sequence[KeptCutOff]) -> None:
        """Keep these, and at most MAX_CUT_OFFS of a run; those of deleted logs are dropped."""
        try:
            await self._database.in_write(_add, cut_offs)
        except ReattachError as error:
            if not lost_a_race(error):
                raise
            await self._database.in_write(_add, cut_offs)  # One of the runs was just deleted.

    async def of_run(self, run_id: RunId) -> list[KeptCutOff]:
        """Return those of a run, the oldest first."""
        rows = await self._database.rows(_OF_RUN, run_id=run_id)
        return [KeptCutOff(**{name: row[name] for name in _FIELDS}) for row in rows]
