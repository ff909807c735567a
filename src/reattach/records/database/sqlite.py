"""Everything particular to SQLite: its connections, its pragmas, and how transactions begin."""

import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry
from typing_extensions import override

from reattach.domain.errors import ReattachError
from reattach.records.database.columns import to_json
from reattach.records.database.prepared import Steps, driver_of, take_steps
from reattach.records.database.prepared import begin as begin_with
from reattach.records.database.sqlite_wal import CHECKPOINT_PAGES, Wal, WalIndex
from reattach.records.database.transactions import Transactions
from reattach.slow_disk import SlowDisk

_T = TypeVar("_T")

Durability = Literal["process", "power"]

BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a statement waits for another process, or for the log's writer, to release the lock."""

READERS: Final = 4
"""Connections that read, each with a thread; reads are short."""

WAIT_SECONDS: Final = 30.0
"""How long a transaction waits for the earlier ones; after that the file is too slow."""

LOOP_VALUE_BYTES: Final = 16 * 1024
"""The largest value that is read or written in the event loop. An agent may have a hundred blocks,
and larger ones would take it longer than a visit to a thread."""

_readable: Final = partial(str, encoding="utf-8", errors="replace")
"""Decodes a text value. One that is not UTF-8 would make the whole result unreadable."""

_WRITE_CACHE_KIB: Final = 8 * 1024
_READ_CACHE_KIB: Final = 2 * 1024
"""The memory for pages of one connection. A writer needs more: the OTIDs of clients, and ids that
are older than the rising ones, are spread over all pages of an index."""

COMMIT_SECONDS: Final = 0.01
"""A commit that takes longer was held up by the disk."""

SHORT_SECONDS: Final = 0.05
"""Other short work that takes longer was. It is interrupted by other programs more often, and the
first use of a statement compiles it."""

LONGEST_PAUSE_SECONDS: Final = 60.0
"""The longest time for which threads do everything after slow work."""

_SYNCHRONOUS: Final = {"process": "NORMAL", "power": "FULL"}


def reads(url: URL, durability: Durability) -> Transactions:
    """Return transactions that each see one state and wait for no writer."""
    engine = _engine(url, pool_size=READERS, max_overflow=0)
    _set_up(engine, _pragmas(durability, query_only=True), "BEGIN")
    return Transactions(engine, connections=READERS, wait_seconds=WAIT_SECONDS)


class AtOnce:
    """Makes transactions in the event loop, over a connection that never waits for a lock.

    Waking a thread and the event loop again, and passing the interpreter between them, takes longer
    than a short one: see docs/decisions/0028.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._disk = SlowDisk(LONGEST_PAUSE_SECONDS)
        self.commits = 0
        """The commits that changed anything."""

    def attempt(self, work: Callable[[Connection], _T]) -> tuple[_T] | None:
        """Return the result of a committed transaction; None if nothing was changed.

        A thread can then wait where this did not, and reports what is wrong. Errors of the domain
        are raised.
        """
        began = self._disk.begin()
        if began is None:
            return None
        try:
            return (self._committed(work),)
        except ReattachError:
            raise
        except Exception:  # noqa: BLE001  The thread raises it.
            return None
        finally:
            self._disk.note(began, SHORT_SECONDS)

    def _committed(self, work: Callable[[Connection], _T]) -> _T:
        driver: sqlite3.Connection = driver_of(self._connection)
        changes = driver.total_changes
        try:
            driver.execute("BEGIN IMMEDIATE")
            result = work(self._connection)
            began = time.monotonic()
            try:
                driver.execute("COMMIT")
            finally:
                self._disk.note(began, COMMIT_SECONDS)
        except Exception:
            self._roll_back()
            raise
        self.commits += driver.total_changes != changes
        return result

    def _roll_back(self) -> None:
        driver = driver_of(self._connection)
        if driver.in_transaction:
            driver.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


class Writes(Transactions):
    """Transactions that take the write lock when they begin, and keep the file's WAL small."""

    def __init__(self, url: URL, durability: Durability) -> None:
        engine = _engine(url, pool_size=1, max_overflow=0)
        _set_up(engine, _pragmas(durability, query_only=False), "BEGIN IMMEDIATE")
        super().__init__(engine, connections=1, wait_seconds=WAIT_SECONDS)
        self._wal = Wal(url.database or "", self.lend)
        self._wal_index = WalIndex(url.database or "")
        # With ``power``, each commit waits for the disk.
        self._at_once = AtOnce(_loop_writer(url)) if durability == "process" else None
        self._short_commits = 0
        """The commits of ``run_short`` that changed anything."""
        self._is_committing_short = False

    @override
    def transact(self, work: Callable[[Connection], _T]) -> _T:
        try:
            result = super().transact(work)
        except OperationalError:
            self._wal.try_to_empty()  # It may hold the space that a full disk lacks.
            raise
        self._wal.note_commit()
        return result

    @override
    def try_at_once(self, work: Callable[[Connection], _T]) -> tuple[_T] | None:
        if self._at_once is None or self.is_closing or not self._wal_index.lets_commit_at_once():
            return None
        return self._at_once.attempt(work)

    @override
    async def run_short(
        self, work: Callable[[Connection], Steps[_T]], read: object | None = None
    ) -> _T:
        def call(connection: Connection) -> _T:
            return take_steps(connection, work(connection))

        return await self.visit(partial(self._transact_short, call))

    @override
    async def run_alone(
        self,
        statement: Callable[[Connection], _T],
        waits: Callable[[Connection], Generator[Any, Any, _T]],
    ) -> _T:
        return await self.visit(partial(self._transact_short, statement))

    def _transact_short(self, work: Callable[[Connection], _T]) -> _T:
        has_changed = False

        def noted(connection: Connection) -> _T:
            nonlocal has_changed
            driver: sqlite3.Connection = driver_of(connection)
            changes = driver.total_changes
            result = work(connection)
            has_changed = driver.total_changes != changes
            self._is_committing_short = True
            return result

        try:
            result = self.transact(noted)
            self._short_commits += has_changed
        finally:
            self._is_committing_short = False
        return result

    def other_commits(self) -> int | None:
        """Return a number that each commit raises by one, except those of short transactions.

        None if it is not known. A short one that failed when it was already committed counts too.
        """
        short = self._short_commits
        commits = self._wal_index.commits()
        # A thread may have made one meanwhile, or may be about to count one.
        if commits is None or self._is_committing_short or short != self._short_commits:
            return None
        return commits - short - (0 if self._at_once is None else self._at_once.commits)

    async def empty_wal(self) -> None:
        """Move the WAL into the database, if no reader prevents that now."""
        await self.visit(self._wal.empty)

    @override
    def close(self) -> None:
        super().close()
        if self._at_once is not None:
            self._at_once.close()
        self._wal_index.close()


def loop_connection(url: URL, durability: Durability) -> Connection:
    """Return a connection for short reads in the event loop.

    It never waits, and refuses values that are larger than LOOP_VALUE_BYTES.
    """
    return _connect_loop(url, _pragmas(durability, query_only=True))


def _loop_writer(url: URL) -> Connection:
    """Return such a connection for short writes, which leave the WAL to the thread."""
    pragmas = _pragmas("process", query_only=False)
    return _connect_loop(url, [*pragmas, "PRAGMA wal_autocheckpoint=0"])


def _connect_loop(url: URL, pragmas: list[str]) -> Connection:
    engine = _engine(url, timeout=0.0, poolclass=NullPool, pool_reset_on_return=None)
    _set_up(engine, pragmas)
    connection = engine.connect()
    driver: sqlite3.Connection = driver_of(connection)
    driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LOOP_VALUE_BYTES)
    return connection


def version_of(connection: Connection) -> int:
    """Return a number that changes with each commit that another connection makes to the file."""
    ((version,),) = driver_of(connection).execute("PRAGMA data_version").fetchall()
    return int(version)


def _engine(url: URL, *, timeout: float | None = None, **options: Any) -> Engine:
    return create_engine(
        url,
        hide_parameters=True,
        json_serializer=to_json,
        connect_args={
            "timeout": BUSY_TIMEOUT_SECONDS if timeout is None else timeout,
            "isolation_level": None,
            "check_same_thread": False,
        },
        **options,
    )


def _pragmas(durability: Durability, *, query_only: bool) -> list[str]:
    return [
        "PRAGMA foreign_keys=ON",
        f"PRAGMA synchronous={_SYNCHRONOUS[durability]}",
        f"PRAGMA query_only={'ON' if query_only else 'OFF'}",
        "PRAGMA secure_delete=ON",
        f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}",
        f"PRAGMA cache_size=-{_READ_CACHE_KIB if query_only else _WRITE_CACHE_KIB}",
    ]


@contextmanager
def schema_change(url: URL) -> Iterator[Connection]:
    """Open a transaction that may change the schema, for a thread without an event loop.

    Creates the file if it is missing, and turns its write-ahead log on, which is permanent.
    """
    engine = _engine(url, poolclass=NullPool)
    _set_up(engine, ["PRAGMA journal_mode=WAL"], "BEGIN IMMEDIATE")
    with _connect(engine) as connection, connection.begin():
        yield connection


def _connect(engine: Engine) -> Connection:
    """Connect, and retry while another process turns the write-ahead log on."""
    deadline_seconds = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            # SQLite refuses the second of two processes at once, whatever the timeout.
            if "locked" not in str(error.orig) or time.monotonic() > deadline_seconds:
                raise
        time.sleep(0.01)


def _set_up(engine: Engine, pragmas: list[str], begin: str | None = None) -> None:
    """Run the pragmas on each new connection, and ``begin`` at the start of each transaction.

    Without ``begin`` each statement is a transaction of its own.
    """

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.text_factory = _readable
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    if begin is None:
        return

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        begin_with(connection, begin)
