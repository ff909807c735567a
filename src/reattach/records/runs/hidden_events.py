"""Events of an active run that its sender did not ask for, so that its log does not have them.

They are kept until the run is settled, because the answer is put together from all events.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, exists, insert, select

from reattach.domain.ids import RunId, Seq
from reattach.records.database import schema

_hidden = schema.hidden_events
_INSERT: Final = insert(_hidden)
_OF_RUNS: Final = (
    select(_hidden.c.run_id, _hidden.c.after_seq, _hidden.c.frame)
    .where(_hidden.c.run_id.in_(bindparam("run_ids", expanding=True)))
    .order_by(_hidden.c.ordinal)
)
_DELETE: Final = delete(_hidden).where(_hidden.c.run_id == bindparam("of_run"))
HAS_ANY: Final = exists().where(_hidden.c.run_id == bindparam("run_id")).label("has_any")
"""Whether the run has such events: a column."""


class HiddenEvent(NamedTuple):
    after_seq: Seq
    """The seq of the last event in the log before it."""
    frame: str
    """The event as a frame of the log; its seq has no meaning."""


def keep(connection: Connection, run_id: RunId, events: Sequence[HiddenEvent]) -> None:
    rows = [{"run_id": run_id, "after_seq": seq, "frame": frame} for seq, frame in events]
    connection.execute(_INSERT, rows)


def of_runs(connection: Connection, run_ids: Sequence[RunId]) -> dict[RunId, list[HiddenEvent]]:
    """Return the events of each run that has any, in order."""
    found: dict[RunId, list[HiddenEvent]] = {}
    for run_id, after_seq, frame in connection.execute(_OF_RUNS, {"run_ids": run_ids}):
        found.setdefault(run_id, []).append(HiddenEvent(after_seq, frame))
    return found


def forget(connection: Connection, run_id: RunId) -> None:
    connection.execute(_DELETE, {"of_run": run_id})
