"""The database of the records: its transactions, and what its failures are called.

One URL decides which database it is. What is particular to one of them stands in a file of its
own: ``sqlite``, ``postgresql``.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from sqlalchemy import URL, Connection, CursorResult, Executable, RowMapping
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from reattach.domain.errors import (
    ConflictError,
    InvalidArgumentError,
    ReattachError,
    StoreUnavailableError,
)
from reattach.domain.store_errors import CommitUnknownError
from reattach.records.database import migrations, postgresql, sqlite
from reattach.records.database.columns import UnstorableError
from reattach.records.database.prepared import PreparedQuery
from reattach.records.database.sqlite import Durability
from reattach.records.database.url import Backend, address_of, backend_of

_T = TypeVar("_T")
_P = ParamSpec("_P")

_LOST_RACES: Final = {"40001", "40P01"}
"""The SQLSTATEs of a transaction that may succeed when it is repeated."""


class Database:
    """Transactions on the database of the records.

    A read sees one state and waits for no write. A write sees what was committed before each of
    its statements; two that change the same rows come one after the other. In SQLite all writes
    do, in the order in which they asked. A transaction whose body raises, or is cancelled, changes
    nothing; one that is cancelled while it commits, or whose connection is lost then, may or may
    not have changed everything.

    An acknowledged write survives a killed process. In SQLite it survives a power cut with
    ``durability="power"``; in PostgreSQL that is what ``synchronous_commit`` and the replicas of
    the server make of it.

    Transactions raise StoreUnavailableError, within seconds, when the database can not be reached,
    is locked for too long, or is full; ConflictError when a write breaks a constraint, which
    another process may have brought about in between; InvalidArgumentError for values that can not
    be stored. After an outage they work again without being told.
    """

    def __init__(
        self,
        address: URL,
        writer: AsyncEngine,
        readers: AsyncEngine,
        *,
        writes: int,
        reads: int,
        turn_seconds: float,
        reading: sqlite.Transactions | None = None,
        writing: sqlite.Transactions | None = None,
        prepared_connection: sqlite3.Connection | None = None,
    ):
        self.address = address
        self._reading = reading
        self._writing = writing
        self._prepared_connection = prepared_connection
        self._writer = writer
        self._readers = readers
        self._turn_seconds = turn_seconds
        self._write_turns = asyncio.Semaphore(writes)
        self._read_turns = asyncio.Semaphore(reads)
        self._ends: set[asyncio.Task[None]] = set()
        self._all_turns = [self._write_turns] * writes + [self._read_turns] * reads
        self._is_closing = False

    @classmethod
    async def open(cls, url: str, *, durability: Durability = "process") -> Self:
        """Open the database of the URL.

        The schema of a SQLite file is brought up to date, since one process owns the file. That
        of a PostgreSQL has to be the one that this version needs: ``upgrade`` makes it so.

        Raises StartupError for a URL that names no database we know, and for another schema;
        StoreUnavailableError if the database can not be reached.
        """
        address = address_of(url)
        with failures_told():
            # A thread of its own, since drivers read files when they are loaded.
            database = await asyncio.to_thread(cls._prepared, address, durability)
        if database.backend == "postgresql":
            try:
                async with database.read() as connection:
                    await connection.run_sync(postgresql.require_fit)
                    present = await connection.run_sync(migrations.revision)
                await asyncio.to_thread(migrations.require_head, present)
                async with database.write():
                    pass  # Drivers look at the server by the first connection that there is.
            except BaseException:
                await database.aclose()
                raise
        return database

    @classmethod
    def _prepared(cls, address: URL, durability: Durability) -> Self:
        if backend_of(address) == "postgresql":
            return cls(
                address,
                postgresql.writers(address),
                postgresql.readers(address),
                writes=postgresql.WRITERS,
                reads=postgresql.READERS,
                turn_seconds=postgresql.TURN_SECONDS,
            )
        _upgrade(address)
        return cls(
            address,
            sqlite.writer(address, durability),
            sqlite.readers(address, durability),
            writes=sqlite.WRITERS,
            reads=sqlite.READERS,
            turn_seconds=sqlite.TURN_SECONDS,
            reading=sqlite.reading(address, durability),
            writing=sqlite.writing(address, durability),
            prepared_connection=sqlite.prepared_connection(address, durability),
        )

    def apart(self) -> "Database":
        """The same PostgreSQL by one connection, for another event loop; nothing is looked at."""
        engine = postgresql.writers(self.address, connections=1)
        return Database(
            self.address, engine, engine, writes=1, reads=0, turn_seconds=postgresql.TURN_SECONDS
        )

    @property
    def backend(self) -> Backend:
        return backend_of(self.address)

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._readers, self._read_turns)

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._writer, self._write_turns)

    async def rows(self, statement: Executable, **values: object) -> Sequence[RowMapping]:
        """All rows of one statement, which is a read of its own.

        ``values`` are those of its parameters: a statement costs more to build than to run.
        """
        return await self.in_read(_rows, statement, values)

    async def in_read(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """What ``work`` returns: a whole read, sooner done than one that waits for each statement.

        ``work`` is called once, with a connection that is its own until it returns; in SQLite in a
        thread, where it must not touch what belongs to the event loop.
        """
        if self._reading is None:
            async with self.read() as connection:
                return await connection.run_sync(work, *args, **kwargs)
        with failures_told():
            self._require_open()
            async with asyncio.timeout(self._turn_seconds):
                return await self._reading.done(
                    lambda connection: work(connection, *args, **kwargs)
                )

    async def in_write(
        self,
        work: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """What ``work`` returns: a whole write, committed. As ``in_read``.

        Cancelled, it may or may not have changed everything.
        """
        if self._writing is None:
            async with self.write() as connection:
                return await connection.run_sync(work, *args, **kwargs)
        with failures_told():
            async with asyncio.timeout(self._turn_seconds):
                await self._write_turns.acquire()
            try:
                self._require_open()
                return await _finished(
                    self._writing.done(lambda connection: work(connection, *args, **kwargs))
                )
            finally:
                self._write_turns.release()

    async def run_prepared(self, query: PreparedQuery, **values: object) -> Sequence[Sequence[Any]]:
        """Return the rows of a prepared query; on SQLite without a visit to a thread."""
        if self._prepared_connection is not None:
            # A thread may wait for a lock and reports the error; the event loop must not.
            with suppress(sqlite3.Error, ValueError, OverflowError):
                return query.rows(self._prepared_connection, values)
        return [list(row.values()) for row in await self.rows(query.statement, **values)]

    async def tidy(self) -> None:
        """Empty the WAL of a SQLite file, which may hold deleted text. To be done now and then."""
        if self._writing is not None:
            with failures_told():
                self._require_open()
                await _finished(self._writing.empty_wal())

    def _require_open(self) -> None:
        if self._is_closing:
            raise StoreUnavailableError("The server is closing. Try again in a moment.")

    async def aclose(self) -> None:
        """Let the transactions that go on end, and let go of the database. Idempotent.

        Those that begin from now on raise StoreUnavailableError.
        """
        if self._is_closing:
            return
        self._is_closing = True
        # An engine forgets the connections that are in use when it is disposed of.
        for turns in self._all_turns:
            await turns.acquire()
        for threads in (self._reading, self._writing):
            if threads is not None:
                await threads.aclose()
        if self._prepared_connection is not None:
            self._prepared_connection.close()
        await self._writer.dispose()
        await self._readers.dispose()
        for turns in self._all_turns:
            turns.release()

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, turns: asyncio.Semaphore
    ) -> AsyncIterator[AsyncConnection]:
        with failures_told():
            async with asyncio.timeout(self._turn_seconds):
                await turns.acquire()
            connection = _SteadyConnection(engine)
            try:
                self._require_open()
                await _finished(connection.start())
                await _finished(connection.begin().start())
                yield connection
            except BaseException as error:
                await self._end(connection, turns, commit=False)
                self._make_room(error)
                raise
            try:
                with commit_failures_told():
                    await self._end(connection, turns, commit=True)
            except CommitUnknownError as error:
                self._make_room(error.__cause__)
                raise

    def _make_room(self, error: BaseException | None) -> None:
        if self._writing is None or self._is_closing:
            return
        if isinstance(error, OperationalError):
            self._writing.empty_wal(after_failure=True)

    async def _end(
        self, connection: AsyncConnection, turns: asyncio.Semaphore, *, commit: bool
    ) -> None:
        # A task of its own, since a cancelled caller must not leave a transaction half ended.
        task = asyncio.create_task(_ended(connection, turns, commit=commit))
        self._ends.add(task)
        task.add_done_callback(self._forget)
        await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._ends.discard(task)
        # The failure belongs to a caller that may have been cancelled and gone.
        task.exception()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade of the schema did."""

    before: str | None
    """The revision that was there; None if there was no schema."""
    after: str


def upgrade(url: str) -> Upgrade:
    """Bring the schema of the database to the revision that this version needs, if it is not.

    For a thread without event loop. Of several at once, in whichever processes, one migrates and
    the others wait for it. Raises StartupError, changing nothing, for a URL that names no database
    we know, and for a schema that is newer; StoreUnavailableError if the database can not be
    reached.
    """
    address = address_of(url)
    with failures_told():
        return _upgrade(address)


def _upgrade(address: URL) -> Upgrade:
    prepared = sqlite if backend_of(address) == "sqlite" else postgresql
    with prepared.preparing(address) as connection:
        before = migrations.revision(connection)
        migrations.upgrade(connection)
    return Upgrade(before, migrations.HEAD)


def _rows(
    connection: Connection, statement: Executable, values: Mapping[str, object]
) -> Sequence[RowMapping]:
    return connection.execute(statement, values).mappings().all()


class _SteadyConnection(AsyncConnection):
    """A connection whose statements are not cancelled in their middle.

    They are short. One that is given up half way leaves its lock to a connection that nobody has
    any more, and those who write next wait for that until they fail.
    """

    @override
    async def execute(self, *args: Any, **kwargs: Any) -> CursorResult[Any]:
        return await _finished(super().execute(*args, **kwargs))

    @override
    async def run_sync(
        self, fn: Callable[Concatenate[Connection, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T:
        return await _finished(super().run_sync(fn, *arg, **kw))


async def _finished(work: Awaitable[_T]) -> _T:
    """Wait for the end of ``work`` however often it is cancelled, and be cancelled then."""
    task = asyncio.ensure_future(work)
    was_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            was_cancelled = True
    if was_cancelled:
        if not task.cancelled():
            task.exception()
        raise asyncio.CancelledError
    return task.result()


async def _ended(connection: AsyncConnection, turns: asyncio.Semaphore, *, commit: bool) -> None:
    try:
        try:
            if commit:
                await connection.commit()
        finally:
            if connection.sync_connection is not None:
                await connection.close()
    finally:
        turns.release()


def lost_a_race(error: ReattachError) -> bool:
    """Whether a transaction failed because of another one, and may succeed if it is repeated."""
    cause = error.__cause__
    if isinstance(cause, IntegrityError):
        return True
    return isinstance(cause, DBAPIError) and _sqlstate(cause) in _LOST_RACES


def _sqlstate(error: DBAPIError) -> str | None:
    found: str | None = getattr(error.orig, "sqlstate", None)
    return found


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn the failures of the database into ours; their SQL stays in the cause."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(
            "What is stored has changed meanwhile and contradicts this request. "
            "Read it again and repeat the request."
        ) from error
    except (UnstorableError, UnicodeEncodeError, OverflowError, DataError) as error:
        raise _unstorable() from error
    except (DBAPIError, PoolTimeoutError, TimeoutError, sqlite3.Error) as error:
        raise StoreUnavailableError(
            "The records can not be read or written at present. Try again; if it lasts, "
            "look at the server's log and at the space and permissions of its database."
        ) from error
    except StatementError as error:
        if not isinstance(error.orig, ValueError | OverflowError):
            raise
        raise _unstorable() from error


@contextmanager
def commit_failures_told() -> Iterator[None]:
    """Turn the failure of a commit into ours: nobody knows whether it happened."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, TimeoutError) as error:
        raise CommitUnknownError(
            "The records did not confirm a change in time, so it may have happened. "
            "Send the same again, with its OTIDs; if it lasts, look at the database."
        ) from error


def _unstorable() -> InvalidArgumentError:
    return InvalidArgumentError(
        "A value can not be stored: text has to be valid Unicode without U+0000, and numbers have "
        "to be finite and to fit 64 bits."
    )
