"""When the events of runs came, kept as long as the events are.

Each owner of a run has a row of its own: it writes it when the run ends, when it hands the run
over, or when somebody looks at the run. An owner that was killed leaves what was written before.
"""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, select

from reattach.domain.ids import RunId, Token
from reattach.records.database import schema
from reattach.records.database.prepared import Changes, upsert
from reattach.records.repository import Repository
from reattach.records.runs.notifications import TimelineKept, TimelineWanted, notify

_timelines, _runs = schema.run_timelines, schema.runs
_HELD: Final = (
    select(_runs.c.id)
    .where(_runs.c.id == bindparam("run_id"), _runs.c.token == bindparam("token"), schema.ACTIVE)
    .with_for_update()
)
_OF_RUN: Final = (
    select(_timelines.c.token, _timelines.c.commits)
    .where(_timelines.c.run_id == bindparam("run_id"))
    .order_by(_timelines.c.token)
)
_DELETE: Final = delete(_timelines).where(
    _timelines.c.run_id.in_(bindparam("run_ids", expanding=True))
)


def keep(connection: Connection, run_id: RunId, token: Token, commits: str) -> None:
    """Write the row of the owner with ``token``; a later one replaces it."""
    changes = Changes(connection)
    add_kept(changes, run_id, token, commits)
    changes.make()


def add_kept(changes: Changes, run_id: RunId, token: Token, commits: str) -> None:
    """Let ``keep`` be one of the changes."""
    values = {"run_id": run_id, "token": token, "commits": commits}
    changes.add(upsert(_timelines, changes.dialect), values)


def forget(connection: Connection, run_ids: list[RunId]) -> None:
    """Delete the rows of these runs."""
    connection.execute(_DELETE, {"run_ids": run_ids})


class Timelines(Repository):
    """When the events of each run came: the commits of each of its owners, encoded by ``runs``."""

    async def of_run(self, run_id: RunId) -> list[tuple[Token, str]]:
        """Return the commits of each owner with its token, in the order of the owners."""
        rows = await self._database.rows(_OF_RUN, run_id=run_id)
        return [(row["token"], row["commits"]) for row in rows]

    async def keep(self, run_id: RunId, token: Token, commits: str | None) -> None:
        """Write the commits of the present owner so far, if any, and notify all processes.

        Writes nothing if the run has ended or its token is another one: then its row is newer.
        """

        def write(connection: Connection) -> None:
            if commits is not None:
                # Locked, so that a settlement comes either before this or after it.
                held = connection.execute(_HELD, {"run_id": run_id, "token": token})
                if held.first() is not None:
                    keep(connection, run_id, token, commits)
            notify(connection, TimelineKept(run_id))

        await self._database.in_write(write)

    async def ask(self, run_id: RunId) -> None:
        """Ask the owner of an active run, in whatever process it is, to write its commits."""
        await self._database.in_write(notify, TimelineWanted(run_id))
