"""All records of a server, behind one door."""

from typing import Self

from reattach.clock import Clock
from reattach.records.agents import Agents
from reattach.records.blocks import Blocks
from reattach.records.conversations import Conversations
from reattach.records.keys import Keys
from reattach.records.messages import Messages
from reattach.records.runs import Runs
from reattach.records.sql import Database
from reattach.records.sqlite import Durability


class Records:
    """Agents, blocks, conversations, messages, runs and keys of one database.

    Every method is a transaction of its own, with the promises of ``Database``. A look-up by a
    client's id takes its tenant, and raises NotFoundError alike for what is another tenant's and
    for what is nobody's.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self.agents = Agents(database, clock)
        self.blocks = Blocks(database, clock)
        self.conversations = Conversations(database, clock)
        self.messages = Messages(database)
        self.runs = Runs(database, clock)
        self.keys = Keys(database, clock)

    @classmethod
    async def open(cls, url: str, *, clock: Clock, durability: Durability = "process") -> Self:
        """Open the database of the URL, such as ``sqlite:////var/lib/reattach/reattach.db``.

        An acknowledged write survives a killed process, and a power cut as well with
        ``durability="power"``. Raises StartupError for a URL or a schema that this version does
        not know, StoreUnavailableError if the database can not be reached.
        """
        return cls(await Database.open(url, durability=durability), clock)

    async def aclose(self) -> None:
        """Let go of the database, after the transactions that are ending."""
        await self._database.aclose()
