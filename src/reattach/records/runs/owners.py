"""The processes that hold leases: one row and one beat for all the runs of a process.

Time is the database's own in PostgreSQL, so that the clocks of processes do not matter; in SQLite
it is that of the one process.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.domain.clock import Clock
from reattach.domain.ids import RunId
from reattach.records.base import Beat
from reattach.records.database import schema
from reattach.records.database.columns import Moment
from reattach.records.database.database import Database

_SECONDS_PER_DAY = 86_400


class Owners:
    """The owners of runs. One lives while it is registered: until it leaves or is buried.

    An owner whose lease ran out has not lost it: its next beat renews it, unless somebody buried it
    before. So of a beat and a burial at one time, one finds the other done.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def aclose(self) -> None:
        """Let go of a database that is not shared with other records: see ``owners_apart``."""
        await self._database.aclose()

    async def register(self, owner: str, lease_seconds: float) -> None:
        """Let the owner live from now on; it has to beat within every ``lease_seconds``.

        Repeating it is safe. An id is used by one process, and not again after its burial.
        """
        owners = schema.owners
        values = {"lease_seconds": lease_seconds, "beat_at": self._now()}
        async with self._database.write() as connection:
            known = await connection.execute(
                update(owners).where(owners.c.id == owner).values(values)
            )
            if not known.rowcount:
                await connection.execute(insert(owners).values({"id": owner, **values}))

    async def beat(self, owner: str) -> Beat:
        """Renew the lease of the owner, and tell which active runs it holds.

        Not alive: it was buried, or never registered; its runs are, or will be, another's.
        """
        async with self._database.write() as connection:
            if self._database.backend == "postgresql":
                return await self._beat_at_once(connection, owner)
            owners, runs = schema.owners, schema.runs
            renewed = await connection.execute(
                update(owners).where(owners.c.id == owner).values(beat_at=self._now())
            )
            if not renewed.rowcount:
                return Beat(alive=False)
            held = await connection.execute(
                select(runs.c.id, runs.c.cancel_requested_at.is_not(None)).where(
                    runs.c.owner == owner, schema.ACTIVE
                )
            )
            return _beat_of(held)

    async def _beat_at_once(self, connection: AsyncConnection, owner: str) -> Beat:
        owners, runs = schema.owners, schema.runs
        before = (
            select(owners.c.id, owners.c.beat_at)
            .where(owners.c.id == owner)
            .with_for_update()
            .cte("before")
        )
        renewed = (
            update(owners)
            .where(owners.c.id == before.c.id)
            .values(beat_at=self._now())
            .returning(owners.c.id, before.c.beat_at.label("beaten_at"), owners.c.beat_at)
            .cte("renewed")
        )
        held = renewed.outerjoin(runs, (runs.c.owner == renewed.c.id) & schema.ACTIVE)
        found = await connection.execute(
            select(
                runs.c.id,
                runs.c.cancel_requested_at.is_not(None),
                extract("epoch", renewed.c.beat_at - renewed.c.beaten_at),
            ).select_from(held)
        )
        rows = found.all()
        if not rows:
            return Beat(alive=False)
        runs_held = [(run_id, is_cancelled) for run_id, is_cancelled, _ in rows if run_id]
        return _beat_of(runs_held, silent_seconds=float(rows[0][2]))

    async def leave(self, owner: str) -> bool:
        """Let the owner live no longer, if it has no active run; True if it does not."""
        owners, runs = schema.owners, schema.runs
        busy = exists().where(runs.c.owner == owner, schema.ACTIVE)
        async with self._database.write() as connection:
            await connection.execute(delete(owners).where(owners.c.id == owner, ~busy))
            found = await connection.scalar(select(owners.c.id).where(owners.c.id == owner))
        return found is None

    async def alive(self, owner: str) -> bool:
        """Whether the owner lives, be its lease run out or not."""
        owners = schema.owners
        wanted = select(owners.c.id).where(owners.c.id == owner)
        async with self._database.read() as connection:
            return await connection.scalar(wanted) is not None

    async def bury(self, by: str | None = None) -> Sequence[str]:
        """Let the owners live no longer whose lease ran out, and return them.

        Of several that bury one owner, one gets it. Its active runs are orphans from now on.
        ``by`` is the owner that asks: it never buries itself, and buries nobody unless it has
        beaten within half its own lease.
        """
        which = self._has_lapsed()
        if by is not None:
            asking = schema.owners.alias("asking")
            may_judge = exists().where(
                asking.c.id == by, self._silent_seconds(asking) < asking.c.lease_seconds / 2
            )
            which = and_(which, schema.owners.c.id != by, may_judge)
        return await self._bury(which)

    async def bury_all_but(self, owner: str) -> Sequence[str]:
        """Bury every other owner, whatever its lease, and return them.

        For the one process of a SQLite file: the others have died, or it could not have begun.
        """
        return await self._bury(schema.owners.c.id != owner)

    async def _bury(self, which: ColumnElement[bool]) -> Sequence[str]:
        owners = schema.owners
        async with self._database.write() as connection:
            buried = await connection.scalars(delete(owners).where(which).returning(owners.c.id))
            return buried.all()

    def _now(self) -> ColumnElement[Any]:
        if self._database.backend == "postgresql":
            # Not the beginning of the transaction, which may have waited for another one.
            return func.clock_timestamp()
        return literal(self._clock.now(), Moment)

    def _has_lapsed(self) -> ColumnElement[bool]:
        owners = schema.owners
        return self._silent_seconds(owners) > owners.c.lease_seconds

    def _silent_seconds(self, owners: FromClause) -> ColumnElement[Any]:
        if self._database.backend == "postgresql":
            return extract("epoch", self._now() - owners.c.beat_at)
        days = func.julianday(self._now()) - func.julianday(owners.c.beat_at)
        return days * _SECONDS_PER_DAY


def _beat_of(held: Iterable[Any], *, silent_seconds: float = 0.0) -> Beat:
    """The beat of an owner of these active runs, each with whether it is to be cancelled."""
    rows = [(RunId(run_id), bool(is_cancelled)) for run_id, is_cancelled in held]
    return Beat(
        alive=True,
        held=tuple(run_id for run_id, _ in rows),
        cancelled=tuple(run_id for run_id, is_cancelled in rows if is_cancelled),
        silent_seconds=silent_seconds,
    )
