"""Word for other processes that the row of a run has changed.

PostgreSQL sends it when the transaction commits, so that whoever hears it finds the change.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

from sqlalchemy import Connection, func, select

from reattach.domain.ids import RunId
from reattach.records.database import postgresql
from reattach.records.database.database import Database


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked an active run to end."""

    word: ClassVar = "cancel"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class RunSettled:
    """A run has its end in the records."""

    word: ClassVar = "settled"
    run_id: RunId


@dataclass(frozen=True, slots=True)
class WakesMissed:
    """The connection was lost, and is there again: look at whatever is waited for."""


Wake = CancelRequested | RunSettled | WakesMissed

_KINDS: Final[dict[str, type[CancelRequested | RunSettled]]] = {
    kind.word: kind for kind in (CancelRequested, RunSettled)
}


def tell(connection: Connection, *wakes: CancelRequested | RunSettled) -> None:
    """Let those who listen hear the wakes when the connection's transaction commits."""
    if connection.dialect.name != "postgresql":
        return
    for wake in wakes:
        notice = func.pg_notify(postgresql.CHANNEL, f"{wake.word} {wake.run_id}")
        connection.execute(select(notice))


@asynccontextmanager
async def heard(database: Database) -> AsyncIterator[AsyncIterator[Wake]]:
    if database.backend == "sqlite":
        async with aclosing(_nothing()) as nothing:
            yield nothing
        return
    async with (
        postgresql.listening(database.address) as notices,
        aclosing(_understood(notices)) as wakes,
    ):
        yield wakes


async def _understood(notices: AsyncIterator[str | None]) -> AsyncGenerator[Wake]:
    async for notice in notices:
        if notice is None:
            yield WakesMissed()
            continue
        word, _, run_id = notice.partition(" ")
        # Another version may say what this one does not know.
        if (kind := _KINDS.get(word)) is not None:
            yield kind(RunId(run_id))


async def _nothing() -> AsyncGenerator[Wake]:
    await asyncio.Event().wait()
    yield WakesMissed()
