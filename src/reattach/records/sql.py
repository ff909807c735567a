"""The database of the records: its transactions, and what its failures are called.

One URL decides which database it is. What is particular to one of them stands in a file of its
own, as ``sqlite``.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final, Self, TypeVar

from sqlalchemy import URL, CursorResult, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

from reattach.errors import (
    ConflictError,
    InvalidArgumentError,
    StartupError,
    StoreUnavailableError,
)
from reattach.records import sqlite
from reattach.records.migrations import upgrade
from reattach.records.sqlite import Durability

_T = TypeVar("_T")

TURN_SECONDS: Final = 30.0
"""How long a transaction waits in this process for those before it; then the store is too slow."""


class Database:
    """Transactions on the database of the records.

    Reads see one state and wait for no write. Writes come one after the other, in the order in
    which they asked. A transaction whose body raises, or is cancelled, changes nothing; one that
    is cancelled while it commits may or may not have changed everything. An acknowledged write
    survives a killed process, and with ``durability="power"`` a power cut as well.

    Transactions raise StoreUnavailableError when the database can not be reached, is locked for
    too long, or is full; ConflictError when a write breaks a constraint, which another process
    may have brought about in between; InvalidArgumentError for values that can not be stored.
    """

    def __init__(self, writer: AsyncEngine, readers: AsyncEngine, *, writes: int, reads: int):
        self._writer = writer
        self._readers = readers
        self._write_turns = asyncio.Semaphore(writes)
        self._read_turns = asyncio.Semaphore(reads)
        self._ends: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, *, durability: Durability = "process") -> Self:
        """Open the database, after bringing its schema up to date.

        Raises StartupError for a URL that names no database we know, and for a schema that is
        newer than this version; StoreUnavailableError if the database can not be reached.
        """
        address = _address(url)
        with failures_told():
            writer, readers = await asyncio.to_thread(_prepare, address, durability)
        return cls(writer, readers, writes=1, reads=sqlite.READERS)

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._readers, self._read_turns)

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._writer, self._write_turns)

    async def aclose(self) -> None:
        """Let the transactions that are ending end, and let go of the database."""
        while self._ends:
            await asyncio.wait(self._ends)
        await self._writer.dispose()
        await self._readers.dispose()

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, turns: asyncio.Semaphore
    ) -> AsyncIterator[AsyncConnection]:
        with failures_told():
            async with asyncio.timeout(TURN_SECONDS):
                await turns.acquire()
            connection = _SteadyConnection(engine)
            try:
                await _finished(connection.start())
                await _finished(connection.begin().start())
                yield connection
            except BaseException:
                await self._end(connection, turns, commit=False)
                raise
            await self._end(connection, turns, commit=True)

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


class _SteadyConnection(AsyncConnection):
    """A connection whose statements are not cancelled in their middle.

    They are short. One that is given up half way leaves its lock to a connection that nobody has
    any more, and those who write next wait for that until they fail.
    """

    @override
    async def execute(self, *args: Any, **kwargs: Any) -> CursorResult[Any]:
        return await _finished(super().execute(*args, **kwargs))


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
    except (DBAPIError, PoolTimeoutError, TimeoutError) as error:
        raise StoreUnavailableError(
            "The records can not be read or written at present. Try again; if it lasts, "
            "look at the server's log and at the space and permissions of its database."
        ) from error
    except (StatementError, UnicodeEncodeError, OverflowError) as error:
        cause = error.orig if isinstance(error, StatementError) else error
        if not isinstance(cause, ValueError | OverflowError):
            raise
        raise InvalidArgumentError(
            "A value can not be stored: text has to be valid Unicode, and numbers have to be "
            "finite and to fit 64 bits."
        ) from error


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise StartupError(
            "The URL of the records can not be read. Give one such as "
            "sqlite:////var/lib/reattach/reattach.db."
        ) from error
    if address.get_backend_name() != "sqlite":
        raise StartupError(
            f"The records can not be kept in {address.get_backend_name()!r}. "
            "Give a URL that begins with sqlite:///."
        )
    return sqlite.checked(address)


def _prepare(address: URL, durability: Durability) -> tuple[AsyncEngine, AsyncEngine]:
    with sqlite.preparing(address) as connection:
        upgrade(connection)
    return sqlite.writer(address, durability), sqlite.readers(address, durability)
