"""The database of the records: which one it is, its transactions, and its upgrade.

The URL decides which database it is. Everything particular to one of them is in a module of its
own: ``sqlite``, ``postgresql``.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from sqlalchemy import URL, Connection, Executable, RowMapping
from sqlalchemy.exc import DBAPIError, IntegrityError

from reattach.domain.errors import ReattachError, StoreUnavailableError
from reattach.meters.meters import StoreMeter
from reattach.records.database import migrations, postgresql, sqlite
from reattach.records.database.failure import translate_failures
from reattach.records.database.prepared import (
    PreparedStatement,
    Steps,
    Values,
    driver_of,
    take_steps,
)
from reattach.records.database.sqlite import Durability
from reattach.records.database.transactions import Grouped, Transactions
from reattach.records.database.url import Backend, address_of, backend_of
from reattach.slow_disk import SlowDisk

_T = TypeVar("_T")
_P = ParamSpec("_P")

RACES: Final = 5
"""Attempts at a write that another process may make fail, because it inserts the same key."""

_LEFT_TO_THREAD: Final = (DBAPIError, sqlite3.Error, ValueError, OverflowError)
"""Failures of a read in the event loop after which a thread reads."""

_LOST_RACES: Final = {"40001", "40P01"}
"""The SQLSTATEs of a transaction that may succeed when it is repeated."""


class Database:
    """Transactions on the database of the records.

    A transaction is one function over a synchronous connection. It is called in a thread, and must
    not touch anything that belongs to the event loop. Short ones are made in the event loop, and in
    a thread after all if they would have to wait there. A write is called again if
    PostgreSQL ended it, and undid all of it, because of a deadlock with another one. Every function
    is called again if its first statement finds that the connection to PostgreSQL was lost since
    the last transaction.

    A read sees one state and waits for no write. Each statement of a write sees what was committed
    before it, and two writes that change the same rows run one after the other. In SQLite all
    writes do: those in a thread in the order of their calls, and short ones perhaps before them. A
    transaction whose function raises changes nothing.
    Cancelling a caller does not stop a transaction that has begun: the caller is cancelled when it
    has ended, and it may have been committed.

    A committed write survives a killed process. In SQLite it survives a power cut with
    ``durability="power"``; in PostgreSQL that depends on ``synchronous_commit`` and the replicas.

    After an outage transactions work again by themselves. All of them raise:
        StoreUnavailableError: The database cannot be reached, is locked for too long, or is full.
            Raised within seconds.
        CommitUnknownError: PostgreSQL did not confirm a commit, so it may have happened.
        ConflictError: A write breaks a constraint; another process may have caused that since the
            function looked.
        InvalidArgumentError: A value cannot be stored.
    """

    def __init__(
        self,
        address: URL,
        *,
        reads: Transactions,
        writes: Transactions,
        loop_connection: Connection | None = None,
    ):
        self.address = address
        is_postgresql = backend_of(address) == "postgresql"
        self.reads = reads
        self.writes = writes
        self._grouped_reads = Grouped(reads)
        self._grouped_writes = (
            Grouped(writes, postgresql.begin_group) if is_postgresql else Grouped(writes)
        )
        self._loop_connection = loop_connection
        self._loop_disk = SlowDisk(sqlite.LONGEST_PAUSE_SECONDS)
        self.meter: StoreMeter | None = None
        """Measures the transactions, except in threads; None: nothing does."""

    @classmethod
    async def open(cls, url: str, *, durability: Durability = "process") -> Self:
        """Open the database of the URL.

        The schema of a SQLite file is upgraded, since one process owns the file. A PostgreSQL
        must have the schema of this version already: see ``upgrade``.

        Raises:
            StartupError: The URL names no supported database, or the schema is another one.
            StoreUnavailableError: The database cannot be reached.
        """
        address = address_of(url)
        with translate_failures():
            # In a thread, because importing a driver reads files.
            database = await asyncio.to_thread(cls._prepare, address, durability)
        if database.backend == "postgresql":
            try:
                present = await database.in_read(_check_server)
                await asyncio.to_thread(migrations.require_head, present)
                # The first connection of an engine asks the server for its settings.
                await database.in_write(lambda _: None)
            except BaseException:
                await database.aclose()
                raise
        return database

    @classmethod
    def _prepare(cls, address: URL, durability: Durability) -> Self:
        if backend_of(address) == "postgresql":
            return cls(address, reads=postgresql.reads(address), writes=postgresql.writes(address))
        _upgrade(address)
        return cls(
            address,
            reads=sqlite.reads(address, durability),
            writes=sqlite.Writes(address, durability),
            loop_connection=sqlite.loop_connection(address, durability),
        )

    def apart(self) -> "Database":
        """Return the same PostgreSQL over one connection of its own, for another event loop."""
        single = postgresql.writes(self.address, connections=1)
        return Database(self.address, reads=single, writes=single)

    @property
    def backend(self) -> Backend:
        return backend_of(self.address)

    async def in_read(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as a transaction that only reads, and return its result."""
        transaction = self.reads.run(lambda connection: work(connection, *args, **kwargs))
        return await self._measured("read", transaction)

    async def in_write(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as a transaction that writes, and return its result once committed."""

        def call(connection: Connection) -> _T:
            return work(connection, *args, **kwargs)

        return await repeat_lost_races(
            lambda: self._measured("write", self.writes.run(call)), StoreUnavailableError
        )

    async def in_short_write(
        self,
        work: Callable[Concatenate[Connection, _P], Steps[_T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as ``in_write`` does, in the event loop if that is possible.

        For prepared statements that change a few rows by their keys, and that change nothing of
        agents, conversations and blocks but facts about runs: see ``Addressees``. ``work`` may be
        called twice.
        """

        def begin(connection: Connection) -> Steps[_T]:
            return work(connection, *args, **kwargs)

        made = self._write_at_once(lambda connection: take_steps(connection, begin(connection)))
        if made is not None:
            return made[0]
        return await repeat_lost_races(
            lambda: self._measured("write", self.writes.run_short(begin)), StoreUnavailableError
        )

    async def in_single_write(self, statement: PreparedStatement, values: Values) -> int:
        """Execute one prepared statement as ``in_short_write`` does.

        Returns the number of changed rows.
        """

        def execute(connection: Connection) -> int:
            return statement.run(connection, values)

        made = self._write_at_once(execute)
        if made is not None:
            return made[0]
        waits = partial(statement.executed, values=values)
        return await self._measured("write", self.writes.run_alone(execute, waits))

    def _write_at_once(self, work: Callable[[Connection], _T]) -> tuple[_T] | None:
        began = time.monotonic()
        made = self.writes.try_at_once(work)
        if made is not None and self.meter is not None:
            self.meter.operation("write").observe(time.monotonic() - began)
        return made

    async def in_raced_write(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as ``in_write`` does, and again if another transaction was faster.

        The failure of the last of RACES attempts is raised.
        """
        return await repeat_lost_races(lambda: self.in_write(work, *args, **kwargs))

    async def in_grouped_read(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as ``in_read`` does, perhaps in one transaction with others that come now.

        For short work of which much may come at once. ``work`` may be called twice.
        """
        transaction = self._grouped_reads.run(lambda connection: work(connection, *args, **kwargs))
        return await self._measured("read", transaction)

    async def in_grouped_write(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as ``in_write`` does, perhaps in one transaction with others that come now.

        For short work of which much may come at once. ``work`` may be called twice.
        """
        transaction = self._grouped_writes.run(lambda connection: work(connection, *args, **kwargs))
        return await self._measured("write", transaction)

    async def _measured(self, operation: str, transaction: Awaitable[_T]) -> _T:
        if self.meter is None:
            return await transaction
        began = time.monotonic()
        try:
            return await transaction
        except StoreUnavailableError:
            self.meter.failed(operation)
            raise
        finally:
            self.meter.operation(operation).observe(time.monotonic() - began)

    async def rows(self, statement: Executable, **values: object) -> Sequence[RowMapping]:
        """Return all rows of one statement, in a read of its own.

        ``values`` are its bound parameters: building a statement costs more than running it.
        """
        return await self.in_read(_rows, statement, values)

    async def in_short_read(
        self,
        work: Callable[Concatenate[Connection, _P], Steps[_T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``work`` as ``in_read`` does, in the event loop if that is possible.

        For prepared statements that find a few rows by their keys. With the write-ahead log of
        SQLite a reader waits for no writer. Values that are too large for the loop are read in a
        thread after all. ``work`` may be called twice, and must be a function of a module: how many
        steps it takes is remembered for it.
        """

        def begin(connection: Connection) -> Steps[_T]:
            return work(connection, *args, **kwargs)

        found = self._read_at_once(lambda connection: _read_in_loop(connection, begin))
        if found is not None:
            return found[0]
        return await self._measured("read", self.reads.run_short(begin, work))

    def _read_at_once(self, read: Callable[[Connection], _T]) -> tuple[_T] | None:
        """Return the result of ``read`` in the event loop; None if only a thread can read it."""
        connection = self._loop_connection
        began = None if connection is None else self._loop_disk.begin()
        if connection is None or began is None:
            return None
        try:
            return (read(connection),)
        except _LEFT_TO_THREAD:  # It may wait for a lock, and reports what is wrong.
            return None
        finally:
            self._loop_disk.note(began, sqlite.SHORT_SECONDS)

    async def run_prepared(
        self, statement: PreparedStatement, **values: object
    ) -> Sequence[Sequence[Any]]:
        """Return the rows of a prepared statement, as a short read of its own."""
        rows = self.run_at_once(statement, values)
        if rows is not None:
            return rows
        read = self.reads.run_alone(
            lambda connection: statement.rows(connection, values),
            partial(statement.asking, values=values),
        )
        return await self._measured("read", read)

    def run_at_once(
        self, statement: PreparedStatement, values: Mapping[str, object]
    ) -> Sequence[Sequence[Any]] | None:
        """Return the rows of a prepared statement, or None if only a thread can read them.

        One statement needs no BEGIN.
        """
        found = self._read_at_once(lambda connection: statement.rows(connection, values))
        return None if found is None else found[0]

    def version_at_once(self) -> int | None:
        """Return a number that changes with each commit to the SQLite file, by any program.

        None if only a thread can read it.
        """
        if self._loop_connection is not None:
            with suppress(sqlite3.Error):
                return sqlite.version_of(self._loop_connection)
        return None

    def other_commits(self) -> int | None:
        """Return a number that rises with each commit, except those of ``in_short_write``.

        That is, those of this process. None if it is not known, as always on PostgreSQL.
        """
        return self.writes.other_commits() if isinstance(self.writes, sqlite.Writes) else None

    async def tidy(self) -> None:
        """Empty the WAL of a SQLite file, which may hold deleted text. To be called regularly."""
        if isinstance(self.writes, sqlite.Writes):
            await self.writes.empty_wal()

    async def aclose(self) -> None:
        """Wait for the transactions under way and close all connections. Idempotent.

        Later transactions raise StoreUnavailableError.
        """
        self.writes.refuse_more()  # Before the wait for the reads.
        await self.reads.aclose()
        if self._loop_connection is not None:
            self._loop_connection.close()
        await self.writes.aclose()  # It closes the last connection.


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The result of an upgrade of the schema."""

    before: str | None
    """The revision before the upgrade; None if there was no schema."""
    after: str


def upgrade(url: str) -> Upgrade:
    """Bring the schema of the database to the revision that this version needs.

    For a thread without an event loop. When several processes upgrade at once, one migrates and
    the others wait for it.

    Raises:
        StartupError: The URL names no supported database, or the schema is newer. Nothing changed.
        StoreUnavailableError: The database cannot be reached.
    """
    address = address_of(url)
    with translate_failures():
        return _upgrade(address)


def _upgrade(address: URL) -> Upgrade:
    module = sqlite if backend_of(address) == "sqlite" else postgresql
    with module.schema_change(address) as connection:
        before = migrations.revision(connection)
        migrations.upgrade(connection)
    return Upgrade(before, migrations.HEAD)


def _check_server(connection: Connection) -> str | None:
    postgresql.require_fit(connection)
    return migrations.revision(connection)


def _read_in_loop(connection: Connection, begin: Callable[[Connection], Steps[_T]]) -> _T:
    driver = driver_of(connection)
    driver.execute("BEGIN")
    try:
        return take_steps(connection, begin(connection))
    finally:
        driver.execute("COMMIT")


def _rows(
    connection: Connection, statement: Executable, values: Mapping[str, object]
) -> Sequence[RowMapping]:
    return connection.execute(statement, values).mappings().all()


async def repeat_lost_races(
    write: Callable[[], Awaitable[_T]], lost: type[ReattachError] = ReattachError
) -> _T:
    """Await a write, and again while another transaction was faster.

    Only errors of the type ``lost`` are repeated. The failure of the last of RACES attempts is
    raised.
    """
    for _ in range(RACES - 1):
        try:
            return await write()
        except lost as error:
            if not lost_a_race(error):
                raise
    return await write()


def lost_a_race(error: ReattachError) -> bool:
    """Whether a transaction failed because of another one, and may succeed if it is repeated."""
    cause = error.__cause__
    if isinstance(cause, IntegrityError):
        return True
    return isinstance(cause, DBAPIError) and _sqlstate(cause) in _LOST_RACES


def _sqlstate(error: DBAPIError) -> str | None:
    found: str | None = getattr(error.orig, "sqlstate", None)
    return found
