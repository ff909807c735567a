"""Callbacks that are due, the outcome of each, and the secrets that sign them.

A callback is due from the transaction that settles its run. Claiming it postpones it by a lease, so
another process sends it when the first one dies. The number of the attempt fences an expired
claim: its outcome does not overwrite that of a later one.
"""

import base64
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    bindparam,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from reattach.domain.ids import RunId, TenantId
from reattach.domain.limits.outbound import (
    CALLBACK_SECRET_OVERLAP_SECONDS,
    CALLBACKS_PER_RECEIVER,
)
from reattach.records.audit_log import Action, note
from reattach.records.base import Actor, Run
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement
from reattach.records.repository import Repository, advisory_lock
from reattach.records.runs.admission import run_of

_SECRET_BYTES: Final = 32
_SECRETS_LOCK: Final = int.from_bytes(b"rcbsecr")
_CANDIDATES: Final = 4
"""Rows read for each callback, because others to their receivers may be under way."""

_ANY_DUE: Final = PreparedStatement(
    select(schema.runs.c.id)
    .where(schema.CALLBACK_DUE, schema.runs.c.callback_due_at <= bindparam("now"))
    .limit(1)
)
"""It costs a fraction of the fair order, and nearly always finds that nothing is due."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A host that receives callbacks of one tenant. Two tenants never share a receiver."""

    tenant: TenantId
    host: str


@dataclass(frozen=True, slots=True)
class DueCallback:
    """A claimed callback."""

    run: Run
    """It has ended, and has a ``callback_url``."""
    tries: int
    """The number of this attempt, which is also the fencing token of the claim."""

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.run.tenant, self.run.callback_host or "")


@dataclass(frozen=True, slots=True)
class CallbackOutcome:
    """The outcome of a callback."""

    sent_at: datetime
    status_code: int | None
    error: str | None
    """None if the receiver accepted the callback."""
    again_at: datetime | None
    """The time of the next attempt; None for none."""


def _take_any(receiver: Receiver) -> bool:  # noqa: ARG001
    return True


@dataclass(frozen=True, slots=True)
class Room:
    """The callbacks that a process has room for."""

    callbacks: int
    full_tenants: Collection[TenantId] = ()
    closed_receivers: Collection[Receiver] = ()
    take: Callable[[Receiver], bool] = _take_any
    """Reserves room for a callback to the receiver; False if there is none."""


class Callbacks(Repository):
    """The callbacks of all tenants."""

    async def claim(self, room: Room | int, lease_seconds: float) -> Sequence[DueCallback]:
        """Claim due callbacks for the caller to send, as many as there is room for.

        Tenants alternate, and so do the receivers of a tenant; the longest waiting goes first.
        Each callback goes to one process. It is due again after ``lease_seconds``, unless ``note``
        records its outcome before. If no callback is due, nothing is written.
        """
        room = Room(room) if isinstance(room, int) else room
        now = self._clock.now()
        if not await self._database.run_prepared(_ANY_DUE, now=now):
            return ()
        candidates = await self._database.in_read(_candidates, room, now)
        chosen: list[RunId] = []
        for row in candidates:
            if len(chosen) == room.callbacks:
                break
            if room.take(Receiver(row["tenant"], row["host"])):
                chosen.append(row["id"])
        if not chosen:
            return ()
        return await self._database.in_write(_claim, chosen, now, lease_seconds)

    async def note(self, run_id: RunId, tries: int, outcome: CallbackOutcome) -> bool:
        """Record the outcome of a claimed callback, and when it is due again.

        Returns False and changes nothing if it was claimed again since. Repeating it is safe.
        """
        return await self._database.in_write(_note, run_id, tries, outcome)

    async def secrets(self, tenant: TenantId) -> Sequence[str]:
        """Return the secrets that sign the tenant's callbacks now, newest first.

        The first call creates the first secret.
        """
        now = self._clock.now()
        found = await self._database.in_read(_secrets, tenant, now)
        return found or await self._database.in_write(_first_secret, tenant, now)

    async def rotate_secret(self, tenant: TenantId, *, by: Actor | None = None) -> str:
        """Create and return a new secret; the old one signs beside it for a day."""
        now = self._clock.now()

        def write(connection: Connection) -> str:
            note(connection, by, Action.CALLBACK_SECRET_ROTATED, now, tenant=tenant)
            return _rotate(connection, tenant, now)

        return await self._database.in_write(write)


def _candidates(connection: Connection, room: Room, now: datetime) -> Sequence[RowMapping]:
    """Return the callbacks that are due, in the order in which they may be sent."""
    found = connection.execute(_in_fair_order(room, now).limit(room.callbacks * _CANDIDATES))
    return found.mappings().all()


def _in_fair_order(room: Room, now: datetime) -> Select[Any]:
    runs = schema.runs
    host = func.coalesce(runs.c.callback_host, "").label("host")
    due = select(runs.c.id, runs.c.tenant, host, runs.c.callback_due_at).where(
        schema.CALLBACK_DUE, runs.c.callback_due_at <= now
    )
    if room.full_tenants:
        due = due.where(runs.c.tenant.not_in(room.full_tenants))
    if room.closed_receivers:
        pairs = [(one.tenant, one.host) for one in room.closed_receivers]
        due = due.where(tuple_(runs.c.tenant, host).not_in(pairs))
    one = due.subquery()
    by_receiver = func.row_number().over(
        partition_by=(one.c.tenant, one.c.host), order_by=(one.c.callback_due_at, one.c.id)
    )
    two = select(one, by_receiver.label("in_receiver")).subquery()
    by_tenant = func.row_number().over(
        partition_by=two.c.tenant, order_by=(two.c.in_receiver, two.c.callback_due_at, two.c.id)
    )
    three = (
        select(two, by_tenant.label("in_tenant"))
        .where(two.c.in_receiver <= CALLBACKS_PER_RECEIVER)
        .subquery()
    )
    return select(three.c.id, three.c.tenant, three.c.host).order_by(
        three.c.in_tenant, three.c.callback_due_at, three.c.id
    )


def _claim(
    connection: Connection, chosen: Sequence[RunId], now: datetime, lease_seconds: float
) -> Sequence[DueCallback]:
    runs = schema.runs
    # Another process may have claimed some of them since they were chosen.
    still_due = select(runs.c.id).where(runs.c.id.in_(chosen), runs.c.callback_due_at <= now)
    ids = connection.scalars(still_due.with_for_update(skip_locked=True)).all()
    connection.execute(
        update(runs)
        .where(runs.c.id.in_(ids))
        .values(
            callback_due_at=now + timedelta(seconds=lease_seconds),
            callback_tries=runs.c.callback_tries + 1,
        )
    )
    rows = connection.execute(select(runs).where(runs.c.id.in_(ids))).mappings()
    claimed = {row["id"]: DueCallback(run_of(row), row["callback_tries"]) for row in rows}
    return [claimed[run_id] for run_id in chosen if run_id in claimed]


def _note(connection: Connection, run_id: RunId, tries: int, outcome: CallbackOutcome) -> bool:
    runs = schema.runs
    noted = connection.execute(
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


def _secrets(connection: Connection, tenant: TenantId, now: datetime) -> Sequence[str]:
    table = schema.callback_secrets
    signing = or_(table.c.signs_until.is_(None), table.c.signs_until > now)
    found = select(table.c.secret).where(table.c.tenant == tenant, signing)
    return connection.scalars(found.order_by(table.c.ordinal.desc())).all()


def _first_secret(connection: Connection, tenant: TenantId, now: datetime) -> Sequence[str]:
    advisory_lock(connection, _SECRETS_LOCK)
    return _secrets(connection, tenant, now) or [_new_secret(connection, tenant, now)]


def _rotate(connection: Connection, tenant: TenantId, now: datetime) -> str:
    advisory_lock(connection, _SECRETS_LOCK)
    table = schema.callback_secrets
    connection.execute(
        update(table)
        .where(table.c.tenant == tenant, table.c.signs_until.is_(None))
        .values(signs_until=now + timedelta(seconds=CALLBACK_SECRET_OVERLAP_SECONDS))
    )
    return _new_secret(connection, tenant, now)


def _new_secret(connection: Connection, tenant: TenantId, now: datetime) -> str:
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
    values = {"tenant": tenant, "secret": secret, "created_at": now}
    connection.execute(insert(schema.callback_secrets), values)
    return secret
