"""Callbacks that are due: which, who makes them, and what came of them.

A call is due from the transaction that settles its run. To claim it is to put its time off by a
lease: a process that dies with a call leaves it to whoever looks after that. The number of the try
fences the one that was given up: what came of it is not written over what came of a later one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update

from reattach.clock import Clock
from reattach.ids import RunId
from reattach.records import schema
from reattach.records.admission import run_of
from reattach.records.base import Run
from reattach.records.sql import Database


@dataclass(frozen=True, slots=True)
class DueCallback:
    """A claimed call."""

    run: Run
    """It has ended, and has a ``callback_url``."""
    tries: int
    """How many there are with this one; it is also the fencing token of the claim."""


@dataclass(frozen=True, slots=True)
class CallbackOutcome:
    """What came of a call."""

    sent_at: datetime
    status_code: int | None
    error: str | None
    """None: the receiver has it."""
    again_at: datetime | None
    """When to try again; None: never."""


class Callbacks:
    """The callbacks of all tenants."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, limit: int, lease_seconds: float) -> Sequence[DueCallback]:
        """Calls that are due, the longest waiting first, at most ``limit``, for the caller to make.

        Of several processes one gets each. It is due again after ``lease_seconds``, unless
        ``note`` says what came of it before. Without one that is due nothing is written.
        """
        runs = schema.runs
        now = self._clock.now()
        due = (
            select(runs.c.id)
            .where(schema.CALLBACK_DUE, runs.c.callback_due_at <= now)
            .order_by(runs.c.callback_due_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            if await connection.scalar(due.limit(1)) is None:
                return ()
        async with self._database.write() as connection:
            ids = (await connection.scalars(due.with_for_update(skip_locked=True))).all()
            await connection.execute(
                update(runs)
                .where(runs.c.id.in_(ids))
                .values(
                    callback_due_at=now + timedelta(seconds=lease_seconds),
                    callback_tries=runs.c.callback_tries + 1,
                )
            )
            rows = await connection.execute(select(runs).where(runs.c.id.in_(ids)))
            return [DueCallback(run_of(row), row["callback_tries"]) for row in rows.mappings()]

    async def note(self, run_id: RunId, tries: int, outcome: CallbackOutcome) -> bool:
        """Write what came of a claimed call, and when it is due again.

        False, and no change, if the call was claimed again since. Repeating it is safe.
        """
        runs = schema.runs
        async with self._database.write() as connection:
            noted = await connection.execute(
                update(runs)
                .where(runs.c.id == run_id, runs.c.callback_tries == tries)
                .values(
                    callback_sent_at=outcome.sent_at,
                    callback_status_code=outcome.status_code,
                    callback_error=outcome.error,
                    callback_due_at=outcome.again_at,
                )
            )
        return noted.rowcount > 0
