"""The processes that hold leases: one row and one beat for all runs of a process.

PostgreSQL's own clock is used, so the clocks of the processes do not matter. On SQLite it is the
clock of the one process.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    and_,
    bindparam,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    select,
    update,
)

from reattach.domain.ids import RunId
from reattach.records.base import Beat, OwnerReport
from reattach.records.database import schema
from reattach.records.database.columns import Moment
from reattach.records.database.prepared import PreparedStatement
from reattach.records.repository import Repository, execute
from reattach.records.runs.notifications import ReportsWanted, notify

_SECONDS_PER_DAY = 86_400

_owners, _runs = schema.owners, schema.runs
_SILENCE: Final = extract("epoch", func.clock_timestamp() - _owners.c.beat_at)
_ANY_EXPIRED: Final = PreparedStatement(
    select(_owners.c.id).where(_owners.c.lease_seconds < _SILENCE).limit(1)
)
"""On PostgreSQL."""


def _beat() -> PreparedStatement:
    """Return the statement of a beat on PostgreSQL."""
    before = (
        select(_owners.c.id, _owners.c.beat_at)
        .where(_owners.c.id == bindparam("owner"))
        .with_for_update()
        .cte("before")
    )
    renewed = (
        update(_owners)
        .where(_owners.c.id == before.c.id)
        .values(beat_at=func.clock_timestamp())
        .returning(_owners.c.id, before.c.beat_at.label("beaten_at"), _owners.c.beat_at)
        .cte("renewed")
    )
    held = renewed.outerjoin(_runs, (_runs.c.owner == renewed.c.id) & schema.ACTIVE)
    return PreparedStatement(
        select(
            _runs.c.id,
            _runs.c.cancel_requested_at.is_not(None).label("is_cancelled"),
            extract("epoch", renewed.c.beat_at - renewed.c.beaten_at).label("silent_seconds"),
        ).select_from(held)
    )


_BEAT: Final = _beat()


class Owners(Repository):
    """The owners of runs. An owner lives while it is registered: until it leaves or is buried.

    An owner whose lease has expired may still renew it by a beat, unless another process buries it
    first. When both happen at once, the database puts one before the other.
    """

    async def aclose(self) -> None:
        """Close a database that is not shared with other records: see ``owners_apart``."""
        await self._database.aclose()

    async def register(self, owner: str, lease_seconds: float) -> None:
        """Register the owner, which has to beat within every ``lease_seconds`` from now on.

        Repeating it is safe. One process uses an id, and nobody uses it after its burial.
        """
        owners = schema.owners
        values = {"lease_seconds": lease_seconds, "beat_at": self._now()}

        def write(connection: Connection) -> None:
            known = connection.execute(update(owners).where(owners.c.id == owner).values(values))
            if not known.rowcount:
                connection.execute(insert(owners).values({"id": owner, **values}))

        await self._database.in_write(write)

    async def beat(self, owner: str) -> Beat:
        """Renew the lease of the owner and return its active runs.

        An owner that is not alive was buried or never registered; its runs go to another one.
        """
        is_postgresql = self._database.backend == "postgresql"
        work = _beat_by_one_statement if is_postgresql else self._beat
        return await self._database.in_write(work, owner)

    def _beat(self, connection: Connection, owner: str) -> Beat:
        owners, runs = schema.owners, schema.runs
        renewed = connection.execute(
            update(owners).where(owners.c.id == owner).values(beat_at=self._now())
        )
        if not renewed.rowcount:
            return Beat(alive=False)
        held = connection.execute(
            select(runs.c.id, runs.c.cancel_requested_at.is_not(None)).where(
                runs.c.owner == owner, schema.ACTIVE
            )
        )
        return _beat_of(held)

    async def ask_for_reports(self) -> datetime:
        """Notify all processes that their reports are wanted, and return when that was."""

        def write(connection: Connection) -> datetime:
            notify(connection, ReportsWanted())
            asked_at: datetime = connection.execute(select(self._now())).scalar_one()
            return asked_at.astimezone(UTC)

        return await self._database.in_write(write)

    async def save_report(self, owner: str, report: str) -> None:
        """Keep the report of a registered process, in place of its last one."""
        owners = schema.owners
        values = {"report": report, "reported_at": self._now()}
        await self._database.in_write(
            execute, update(owners).where(owners.c.id == owner).values(values)
        )

    async def reports(self) -> list[OwnerReport]:
        """Return the last report of each process that is registered."""
        owners = schema.owners
        rows = select(
            owners.c.id.label("owner"),
            (~self._has_expired()).label("has_lease"),
            owners.c.reported_at,
            owners.c.report,
        ).order_by(owners.c.id)
        return [OwnerReport(**row) for row in await self._database.rows(rows)]

    async def forget_reports(self) -> None:
        """Delete all reports, which may name readers and runs. Processes write new ones if asked.

        A process that is about to write one still does so.
        """
        owners = schema.owners
        written = owners.c.report.is_not(None)
        await self._database.in_write(
            execute, update(owners).where(written).values(report=None, reported_at=None)
        )

    async def leave(self, owner: str) -> bool:
        """Remove the owner if it has no active run; True if it is not registered afterwards."""
        owners, runs = schema.owners, schema.runs
        busy = exists().where(runs.c.owner == owner, schema.ACTIVE)

        def write(connection: Connection) -> bool:
            connection.execute(delete(owners).where(owners.c.id == owner, ~busy))
            return connection.scalar(select(owners.c.id).where(owners.c.id == owner)) is None

        return await self._database.in_write(write)

    async def is_alive(self, owner: str) -> bool:
        """Whether the owner is registered, with an expired lease or not."""
        owners = schema.owners
        return bool(await self._database.rows(select(owners.c.id).where(owners.c.id == owner)))

    async def bury(self, by: str | None = None) -> Sequence[str]:
        """Remove the owners whose lease has expired, and return them.

        Each is returned to exactly one caller. Its active runs are orphans from now on. ``by`` is
        the owner that calls: it never buries itself, and buries nobody unless it has beaten within
        half of its own lease.
        """
        if not await self._may_have_expired():
            return []
        which = self._has_expired()
        if by is not None:
            asking = schema.owners.alias("asking")
            may_judge = exists().where(
                asking.c.id == by, self._silent_seconds(asking) < asking.c.lease_seconds / 2
            )
            which = and_(which, schema.owners.c.id != by, may_judge)
        return await self._bury(which)

    async def bury_all_but(self, owner: str) -> Sequence[str]:
        """Remove every other owner, whatever its lease, and return them.

        For the one process of a SQLite file, which starts only when the earlier ones have died.
        """
        return await self._bury(schema.owners.c.id != owner)

    async def _may_have_expired(self) -> bool:
        """Return False if no lease has expired. A look costs less than a DELETE that finds none."""
        if self._database.backend != "postgresql":
            return True
        return bool(await self._database.run_prepared(_ANY_EXPIRED))

    async def _bury(self, which: ColumnElement[bool]) -> Sequence[str]:
        owners = schema.owners

        def write(connection: Connection) -> Sequence[str]:
            buried = delete(owners).where(which).returning(owners.c.id, owners.c.beat_at)
            dead = connection.execute(buried).all()
            for owner, beat_at in dead:
                held = (schema.runs.c.owner == owner) & schema.ACTIVE
                connection.execute(update(schema.runs).where(held).values(interrupted_at=beat_at))
            return [owner for owner, _ in dead]

        return await self._database.in_write(write)

    def _now(self) -> ColumnElement[Any]:
        if self._database.backend == "postgresql":
            # The start of the transaction would be too early: it may have waited for another one.
            return func.clock_timestamp()
        return literal(self._clock.now(), Moment)

    def _has_expired(self) -> ColumnElement[bool]:
        owners = schema.owners
        return self._silent_seconds(owners) > owners.c.lease_seconds

    def _silent_seconds(self, owners: FromClause) -> ColumnElement[Any]:
        if self._database.backend == "postgresql":
            return extract("epoch", self._now() - owners.c.beat_at)
        days = func.julianday(self._now()) - func.julianday(owners.c.beat_at)
        return days * _SECONDS_PER_DAY


def _beat_by_one_statement(connection: Connection, owner: str) -> Beat:
    rows = _BEAT.rows(connection, {"owner": owner})
    if not rows:
        return Beat(alive=False)
    runs_held = [(run_id, is_cancelled) for run_id, is_cancelled, _ in rows if run_id]
    return _beat_of(runs_held, silent_seconds=float(rows[0][2]))


def _beat_of(held: Iterable[Any], *, silent_seconds: float = 0.0) -> Beat:
    """Return the beat of an owner of these runs, each with whether a cancel was requested."""
    rows = [(RunId(run_id), bool(is_cancelled)) for run_id, is_cancelled in held]
    return Beat(
        alive=True,
        held=tuple(run_id for run_id, _ in rows),
        cancelled=tuple(run_id for run_id, is_cancelled in rows if is_cancelled),
        silent_seconds=silent_seconds,
    )
