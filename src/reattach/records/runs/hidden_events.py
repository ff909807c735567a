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
_OF_RUN: Final = (
    select(_hidden.c.after_seq, _hidden.c.frame)
    .where(_hidden.c.run_id == bindparam("run_id"))
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


def of_run(connection: Connection, run_id: RunId) -> list[HiddenEvent]:
    """Return the events in order."""
    return [HiddenEvent(*row) for row in connection.execute(_OF_RUN, {"run_id": run_id})]


def forget(connection: Connection, run_id: RunId) -> None:
    connection.execute(_DELETE, {"of_run": run_id})
