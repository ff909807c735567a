"""What is particular to SQLite: its drivers, its pragmas, and how its transactions begin."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Literal, TypeVar, cast

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    create_engine,
    event,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from reattach.records.database.columns import to_json
from reattach.records.database.sqlite_driver import DRIVER_NAME
from reattach.records.database.sqlite_wal import Wal

_T = TypeVar("_T")

Durability = Literal["process", "power"]

BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a statement waits for another process, or for the log's writer, to let go."""

WRITERS: Final = 1
"""Transactions that write: SQLite has one writer at a time."""

READERS: Final = 4
"""Connections that read; each is a thread, and reads are short."""

TURN_SECONDS: Final = 30.0
"""How long a transaction waits for those before it; then the file is too slow."""

_READING_THREADS: Final = 2
"""Threads for whole reads; on one core more of them only wait for each other."""

_SYNCHRONOUS: Final = {"process": "NORMAL", "power": "FULL"}


def writer(url: URL, durability: Durability) -> AsyncEngine:
    """One connection that writes. It takes the write lock when its transaction begins."""
    return _engine(url, durability, connections=1, begin="BEGIN IMMEDIATE", query_only=False)


def readers(url: URL, durability: Durability) -> AsyncEngine:
    """Connections that read: each transaction sees one state, and waits for no writer."""
    return _engine(url, durability, connections=READERS, begin="BEGIN", query_only=True)


def prepared_connection(url: URL, durability: Durability) -> sqlite3.Connection:
    """Return a connection for prepared queries, for one thread at a time. It never waits."""
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"timeout": 0.0, "isolation_level": None, "check_same_thread": False},
    )
    _set_up(engine, _pragmas(durability, query_only=True))
    borrowed = engine.raw_connection()
    connection = cast("sqlite3.Connection", borrowed.driver_connection)
    borrowed.detach()
    return connection


class Transactions:
    """Whole transactions, each a visit to a thread.

    One of ten statements visits the thread of the asynchronous driver twelve times, and makes a
    task for each of them.
    """

    def __init__(
        self, url: URL, durability: Durability, *, threads: int, begin: str, query_only: bool
    ) -> None:
        self._engine = _thread_engine(url, threads)
        _set_up(self._engine, _pragmas(durability, query_only=query_only), begin)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reattach-records")
        self._wal = None if query_only else Wal(url.database or "", self._engine)

    def done(self, work: Callable[[Connection], _T]) -> "asyncio.Future[_T]":
        """Done with what ``work`` returned when that is committed. Cancelled, it ends unheard."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, self._transact, work)

    def empty_wal(self, *, after_failure: bool = False) -> "asyncio.Future[None]":
        """Done when the WAL of what was written is in the database, if that is possible now."""
        assert self._wal is not None
        empty = self._wal.try_to_empty if after_failure else self._wal.empty
        return asyncio.get_running_loop().run_in_executor(self._threads, empty)

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _transact(self, work: Callable[[Connection], _T]) -> _T:
        try:
            with self._engine.begin() as connection:
                result = work(connection)
        except OperationalError:
            if self._wal is not None:
                self._wal.try_to_empty()  # It may have the room that the disk lacks.
            raise
        if self._wal is not None:
            self._wal.note_commit()
        return result

    def _close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()


def writing(url: URL, durability: Durability) -> Transactions:
    """As ``writer``, with which it takes turns, for transactions that are one function."""
    return Transactions(url, durability, threads=1, begin="BEGIN IMMEDIATE", query_only=False)


def reading(url: URL, durability: Durability) -> Transactions:
    """As ``readers``, for transactions that are one function."""
    threads = _READING_THREADS
    return Transactions(url, durability, threads=threads, begin="BEGIN", query_only=True)


def _thread_engine(url: URL, connections: int) -> Engine:
    return create_engine(
        url.set(drivername="sqlite+pysqlite"),
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
        json_serializer=to_json,
        connect_args={
            "timeout": BUSY_TIMEOUT_SECONDS,
            "isolation_level": None,
            "check_same_thread": False,
        },
    )


def _engine(
    url: URL, durability: Durability, *, connections: int, begin: str, query_only: bool
) -> AsyncEngine:
    engine = create_async_engine(
        url.set(drivername=DRIVER_NAME),
        pool_size=connections,
        max_overflow=0,
        json_serializer=to_json,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
    )
    _set_up(engine.sync_engine, _pragmas(durability, query_only=query_only), begin)
    return engine


def _pragmas(durability: Durability, *, query_only: bool) -> list[str]:
    return [
        "PRAGMA foreign_keys=ON",
        f"PRAGMA synchronous={_SYNCHRONOUS[durability]}",
        f"PRAGMA query_only={'ON' if query_only else 'OFF'}",
        "PRAGMA secure_delete=ON",
    ]


@contextmanager
def preparing(url: URL) -> Iterator[Connection]:
    """A transaction that writes, for a thread without event loop that prepares the file.

    It makes the file, and turns its write-ahead log on, which lasts.
    """
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
    )
    _set_up(engine, ["PRAGMA journal_mode=WAL"], "BEGIN IMMEDIATE")
    with _patiently_connected(engine) as connection, connection.begin():
        yield connection


def _patiently_connected(engine: Engine) -> Connection:
    deadline_seconds = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            # Of two processes that turn the log on at once, one is refused without any wait.
            if "locked" not in str(error.orig) or time.monotonic() > deadline_seconds:
                raise
        time.sleep(0.01)


def _set_up(engine: Engine, pragmas: list[str], begin: str | None = None) -> None:
    """``begin`` begins each transaction; without one a statement is a transaction of its own."""

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    if begin is None:
        return

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
