"""The entrance to all records of a server."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlalchemy import Connection, func, select

from reattach.domain.clock import Clock
from reattach.domain.limits import AUDIT_SWEEP_SECONDS, CONTEXT_CACHE_BYTES, SWEEP_BATCH_RUNS
from reattach.meters.meters import StoreMeter
from reattach.records.agents import Agents
from reattach.records.audit_log import AuditLog
from reattach.records.blocks import Blocks
from reattach.records.callbacks import Callbacks
from reattach.records.clocks.notes import ClockNotes
from reattach.records.contexts.contexts import Contexts
from reattach.records.conversations import Conversations
from reattach.records.database.database import Database
from reattach.records.database.sqlite import Durability
from reattach.records.database.url import Backend
from reattach.records.keys import Keys
from reattach.records.known.addressees import Addressees
from reattach.records.messages import Messages
from reattach.records.runs.cut_offs import CutOffs
from reattach.records.runs.lists.overview import Overview
from reattach.records.runs.lists.summaries import RunSummaries
from reattach.records.runs.notifications import Notification, listen
from reattach.records.runs.openings import ConversationKeys
from reattach.records.runs.owners import Owners
from reattach.records.runs.runs import Runs
from reattach.records.runs.targets.known import KnownTargets
from reattach.records.runs.timelines import Timelines
from reattach.records.tenants.tenants import Tenants
from reattach.records.tokens.tokens import Tokens


class Records:
    """All rows of one database: agents, conversations, runs, keys, tokens and the others.

    Every method is a transaction of its own, with the guarantees and errors of ``Database``. A
    method that takes a client's id takes the tenant too, and raises NotFoundError for a row of
    another tenant as for one that does not exist.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        audit_days: int = 90,
        context_cache_bytes: int = CONTEXT_CACHE_BYTES,
        deletes_nameless_chats: bool = False,
    ) -> None:
        self._database = database
        self._clock = clock
        self.agents = Agents(database, clock)
        self.blocks = Blocks(database, clock)
        self.conversations = Conversations(database, clock)
        self.addressees = Addressees(database, self.agents, self.conversations)
        self.conversation_keys = ConversationKeys(database, clock)
        contexts = Contexts(context_cache_bytes, clock.monotonic_seconds)
        self.messages = Messages(database, clock, contexts)
        self.runs = Runs(database, clock, contexts)
        self.known_targets = KnownTargets(database)
        self.run_summaries = RunSummaries(database, clock)
        self.overview = Overview(database, clock)
        self.cut_offs = CutOffs(database, clock)
        self.timelines = Timelines(database, clock)
        self.callbacks = Callbacks(database, clock)
        self.owners = Owners(database, clock)
        self.keys = Keys(database, clock)
        self.tokens = Tokens(database, clock)
        self.tenants = Tenants(database, clock)
        self.audit_log = AuditLog(database, clock)
        self.clock_notes = ClockNotes(database, clock)
        self._audit_kept = timedelta(days=audit_days)
        self._deletes_nameless_chats = deletes_nameless_chats
        self._audit_sweep_due_at = clock.monotonic_seconds()

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        clock: Clock,
        durability: Durability = "process",
        audit_days: int = 90,
        context_cache_bytes: int = CONTEXT_CACHE_BYTES,
        deletes_nameless_chats: bool = False,
    ) -> Self:
        """Open the database of the URL: see ``Database.open``.

        ``audit_days`` is the age at which entries of the audit log are deleted, and
        ``context_cache_bytes`` the most memory for contexts that are kept decoded between turns.
        ``deletes_nameless_chats``: ``tidy`` calls ``ConversationKeys.delete_nameless``.

        The URL is one such as ``sqlite:////var/lib/reattach/reattach.db`` or
        ``postgresql://user:password@host/database``.
        """
        database = await Database.open(url, durability=durability)
        return cls(
            database,
            clock,
            audit_days=audit_days,
            context_cache_bytes=context_cache_bytes,
            deletes_nameless_chats=deletes_nameless_chats,
        )

    def measure(self, meter: StoreMeter) -> None:
        """Measure all transactions from now on, except those of ``owners_apart``."""
        self._database.meter = meter

    @property
    def backend(self) -> Backend:
        return self._database.backend

    @property
    def shared(self) -> bool:
        """Whether several processes may use the database at a time."""
        return self._database.backend == "postgresql"

    async def time(self) -> datetime | None:
        """Return the time of the database's own clock; None for a SQLite file, which has none."""
        if not self.shared:
            return None
        return await self._database.in_read(_now)

    def owners_apart(self) -> Owners:
        """Return the owners over one connection of their own, for another event loop.

        The caller closes them. Calling this may read files, but does not connect.
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
        """Delete expired tokens and what remains of deleted conversations. To be called regularly.

        It also deletes nameless chats, if the server is set so, and once an hour old entries of the
        audit log.

        Raises:
            StoreUnavailableError: The disk does not accept it now; call again later.
        """
        if self._deletes_nameless_chats:
            while await self.conversation_keys.delete_nameless(SWEEP_BATCH_RUNS):
                pass
        while await self.conversations.forget_deleted(SWEEP_BATCH_RUNS) == SWEEP_BATCH_RUNS:
            pass
        await self.tokens.sweep()
        self.messages.drop_idle_contexts()
        if self._clock.monotonic_seconds() >= self._audit_sweep_due_at:
            await self.audit_log.sweep(self._audit_kept)
            self._audit_sweep_due_at = self._clock.monotonic_seconds() + AUDIT_SWEEP_SECONDS
        await self._database.tidy()

    async def aclose(self) -> None:
        """Close the database after the transactions under way."""
        await self._database.aclose()


def _now(connection: Connection) -> datetime:
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found.astimezone(UTC)
