"""Notifications between processes that the row of a run has changed.

PostgreSQL sends a notification when its transaction commits, so a listener finds the change.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

from sqlalchemy import Connection, String, bindparam, func, select

from reattach.domain.ids import RunId
from reattach.records.database import postgresql
from reattach.records.database.database import Database
from reattach.records.database.prepared import Changes, PreparedStatement


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """A client asked an active run to end."""

    word: ClassVar = "cancel"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class RunSettled:
    """The end of a run is in the records."""

    word: ClassVar = "settled"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class RunReleased:
    """The owner of an active run gave it up, so that another process can continue it."""

    word: ClassVar = "released"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class ReportsWanted:
    """Some process asks all others to write their reports."""

    word: ClassVar = "report"


@dataclass(frozen=True, slots=True)
class TimelineWanted:
    """Somebody looks at an active run: its owner writes when its events came."""

    word: ClassVar = "timeline"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class TimelineKept:
    """The owner of a run has done so."""

    word: ClassVar = "kept"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class NotificationsMissed:
    """The connection was lost and is back: read everything again that you wait for."""


_OfRun = CancelRequested | RunSettled | RunReleased | TimelineWanted | TimelineKept

_Sent = _OfRun | ReportsWanted

Notification = _Sent | NotificationsMissed

_KINDS: Final[dict[str, type[_OfRun]]] = {
    kind.word: kind
    for kind in (CancelRequested, RunSettled, RunReleased, TimelineWanted, TimelineKept)
}


_NOTIFY: Final = PreparedStatement(
    select(func.pg_notify(postgresql.CHANNEL, bindparam("payload", type_=String)))
)


def notify(connection: Connection, *notifications: _Sent) -> None:
    """Send the notifications to all listeners when the connection's transaction commits."""
    if connection.dialect.name != "postgresql":
        return
    for notification in notifications:
        _NOTIFY.rows(connection, {"payload": _payload(notification)})


def changes_with(connection: Connection, notification: _Sent) -> Changes:
    """Return changes that notify all listeners as ``notify`` does."""
    changes = Changes(connection)
    if changes.dialect == "postgresql":
        changes.add(_NOTIFY, {"payload": _payload(notification)})
    return changes


def _payload(notification: _Sent) -> str:
    if isinstance(notification, ReportsWanted):
        return notification.word
    return f"{notification.word} {notification.run_id}"


@asynccontextmanager
async def listen(database: Database) -> AsyncIterator[AsyncIterator[Notification]]:
    """Iterate over the notifications from now on: see ``Records.notifications``."""
    if database.backend == "sqlite":
        async with aclosing(_none()) as none:
            yield none
        return
    async with (
        postgresql.listening(database.address) as payloads,
        aclosing(_parse(payloads)) as notifications,
    ):
        yield notifications


async def _parse(payloads: AsyncIterator[str | None]) -> AsyncGenerator[Notification]:
    async for payload in payloads:
        if payload is None:
            yield NotificationsMissed()
            continue
        word, _, run_id = payload.partition(" ")
        # Another version may send a word that this one does not know.
        if word == ReportsWanted.word:
            yield ReportsWanted()
        elif (kind := _KINDS.get(word)) is not None:
            yield kind(RunId(run_id))


async def _none() -> AsyncGenerator[Notification]:
    await asyncio.Event().wait()
    yield NotificationsMissed()
