"""The last note of how the clock stood, so that the next process can tell whether it jumped."""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select

from reattach.records.database import schema
from reattach.records.database.prepared import upsert
from reattach.records.repository import Repository

_notes = schema.clock_notes
_ONLY_ONE: Final = 1


@dataclass(frozen=True, slots=True)
class ClockNote:
    """How a process found the clock. Processes of one boot share their monotonic clock."""

    boot: str | None
    """The id of the machine's boot; None if the system has none."""
    zero_at: datetime
    """The time at which the monotonic clock showed zero, by the wall clock of the note."""
    steady_since_seconds: float
    """The reading of the monotonic clock from which on the wall clock was steady."""
    is_steady: bool
    """False if the wall clock jumped, and has not been steady for one retention since."""


class ClockNotes(Repository):
    """The only note, which all processes of the database share."""

    async def latest(self) -> ClockNote | None:
        """Return the note that was kept last."""
        columns = [_notes.c[one.name] for one in fields(ClockNote)]
        rows = await self._database.rows(select(*columns))
        return ClockNote(**rows[0]) if rows else None

    async def keep(self, note: ClockNote) -> None:
        """Keep the note in place of the last one."""

        def write(connection: Connection) -> None:
            values = {"ordinal": _ONLY_ONE, **asdict(note)}
            upsert(_notes, connection.dialect.name).run(connection, values)

        await self._database.in_write(write)
