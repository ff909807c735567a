"""All records of a server, behind one door."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Self

from sqlalchemy import Connection, func, select

from reattach.domain.clock import Clock
from reattach.domain.limits import SWEEP_BATCH_RUNS
from reattach.records.agents import Agents
from reattach.records.blocks import Blocks
from reattach.records.callbacks import Callbacks
from reattach.records.conversations import Conversations
from reattach.records.database.database import Database
from reattach.records.database.sqlite import Durability
from reattach.records.keys import Keys
from reattach.records.messages import Messages
from reattach.records.runs.notifications import Notification, listen
from reattach.records.runs.owners import Owners
from reattach.records.runs.runs import Runs


class Records:
    """Agents, blocks, conversations, messages, runs, owners and keys of one database.

    Every method is a transaction of its own, with the promises of ``Database``. A look-up by a
    client's id takes its tenant, and raises NotFoundError alike for what is another tenant's and
    for what is nobody's.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.agents = Agents(database, clock)
        self.blocks = Blocks(database, clock)
        self.conversations = Conversations(database, clock)
        self.messages = Messages(database)
        self.runs = Runs(database, clock)
        self.callbacks = Callbacks(database, clock)
        self.owners = Owners(database, clock)
        self.keys = Keys(database, clock)

    @classmethod
    async def open(cls, url: str, *, clock: Clock, durability: Durability = "process") -> Self:
        """Open the database of the URL: ``Database.open`` says what an acknowledged write survives.

        Such as ``sqlite:////var/lib/reattach/reattach.db`` or
        ``postgresql://user:password@host/database``, whose schema ``sql.upgrade`` has made. Raises
        StartupError for a URL or a schema that this version does not know, StoreUnavailableError
        if the database can not be reached.
        """
        return cls(await Database.open(url, durability=durability), clock)

    @property
    def shared(self) -> bool:
        """Whether several processes may use the database at a time."""
        return self._database.backend == "postgresql"

    async def time(self) -> datetime | None:
        """Return the time of the database's own clock; None if it has none, as a SQLite file."""
        if not self.shared:
            return None
        return await self._database.in_read(_time)

    def owners_apart(self) -> Owners:
        """The owners over one connection of their own, for another event loop; to be closed.

        Made where files may be read. Raises nothing because of the connection.
        """
        return Owners(self._database.apart(), self._clock)

    def notifications(self) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        """Iterate over the changes of runs that any process commits from now on, without an end.

        A notification may be lost or come twice; the row is the truth. PostgreSQL takes one
        connection for this, which is made again when it is lost: then ``NotificationsMissed``
        comes first, and nothing is raised. On SQLite nothing ever comes, because its one process
        needs no word of its own changes.
        """
        return listen(self._database)

    async def tidy(self) -> None:
        """Let go of what is kept of deleted text. To be done now and then.

        Raises:
            StoreUnavailableError: the disk does not take it; try again later.
        """
        while await self.conversations.forget_deleted(SWEEP_BATCH_RUNS) == SWEEP_BATCH_RUNS:
            pass
        await self._database.tidy()

    async def aclose(self) -> None:
        """Let go of the database, after the transactions that are ending."""
        await self._database.aclose()


def _time(connection: Connection) -> datetime:
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)
