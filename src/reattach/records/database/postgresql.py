"""Everything particular to PostgreSQL: its driver, timeouts, locks and notifications.

The server must have version 14 or newer and its database the encoding UTF8. The URL takes the
parameters of libpq: ``sslmode``, ``sslrootcert``, ``target_session_attrs``, ``passfile``, and
``host`` with the folder of a socket.

A process uses at most ``WRITERS`` and ``READERS`` connections, one that listens, and one that
renews the lease.
"""

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text

from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.records.database.columns import to_json
from reattach.records.database.prepared import driver_of
from reattach.records.database.transactions import Transactions

if TYPE_CHECKING:
    from reattach.records.database.connection import ListeningConnection

logger = logging.getLogger(__name__)

WRITERS: Final = 6
"""Connections that write. A transaction takes milliseconds, and a server has a hundred in all."""

READERS: Final = 4
"""Connections that read."""

CONNECT_SECONDS: Final = 3
"""How long connecting may take."""

LOCK_SECONDS: Final = 5.0
"""How long a statement may wait for a lock."""

GROUP_LOCK_SECONDS: Final = 0.1
"""How long a statement of grouped writes may wait for a lock, before each write waits alone."""

STATEMENT_SECONDS: Final = 300.0
"""How long one statement may take, from its first parameter to its last row: a large answer over a
slow network takes minutes. A silent server is given up long before that."""

IDLE_SECONDS: Final = 5.0
"""How long a process may pause within a transaction, while others wait for its locks. It is less
than a lease, so that the runs of the paused process can be taken over."""

WAIT_SECONDS: Final = 10.0
"""How long a transaction waits for a connection of this process."""

RECONNECT_SECONDS: Final = 1.0
"""The pause before the listening connection is made again."""

LISTEN_CHECK_SECONDS: Final = 10.0
"""How often the listening connection is checked."""

CHANNEL: Final = "reattach"
"""The channel of this project's notifications."""

OLDEST: Final = 14
"""The oldest major version that the PostgreSQL project still supports."""

_UPGRADE_LOCK: Final = 0x7265_6174_7461_6368
"""The key of the advisory lock for changes of the schema: "reattach"."""

_LIBPQ: Final = {
    "application_name": "reattach",
    "client_encoding": "UTF8",
    "connect_timeout": str(CONNECT_SECONDS),
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
}
"""Parameters of libpq, unless the URL sets them. They detect a dead network within seconds."""

_SESSION: Final = (
    f"SET lock_timeout = {int(LOCK_SECONDS * 1000)};"
    f"SET statement_timeout = {int(STATEMENT_SECONDS * 1000)};"
    f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}"
)


def writes(address: URL, *, connections: int = WRITERS) -> Transactions:
    """Return transactions that write, READ COMMITTED: each statement sees the newest state."""
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    return _transactions(address, connections, begin, _SESSION)


def reads(address: URL) -> Transactions:
    """Return transactions that read: each sees one state and waits for no writer.

    They hold no locks, so they may be idle for as long as a slow network takes for an answer.
    """
    idle = f"SET idle_in_transaction_session_timeout = {int(STATEMENT_SECONDS * 1000)}"
    # Several statements that are sent together are a transaction even without BEGIN.
    isolation = "SET default_transaction_isolation = 'repeatable read'"
    session = f"{_SESSION};{idle};{isolation};SET default_transaction_read_only = on"
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
    return _transactions(address, READERS, begin, session, read_only=True)


def begin_group(connection: Connection) -> None:
    """Let no lock that one of several writes needs delay the others for long."""
    milliseconds = int(GROUP_LOCK_SECONDS * 1000)
    driver_of(connection).defer(f"SET LOCAL lock_timeout = {milliseconds}", ())


def _transactions(
    address: URL, connections: int, begin: str, session: str, *, read_only: bool = False
) -> Transactions:
    engine = _engine(
        address,
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level="AUTOCOMMIT",  # Transactions begin with ``begin``.
        json_serializer=to_json,
        json_deserializer=bytes.decode,  # The types of the columns decode the text.
    )
    from reattach.records.database.connection import BoundedConnection

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _args: Any, arguments: Any) -> BoundedConnection:
        connection = BoundedConnection.open(session, **arguments)
        connection.commits_later = read_only
        return connection

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        driver = driver_of(connection)
        driver.require_thread()
        driver.begin_with(begin)

    return Transactions(engine, connections=connections, wait_seconds=WAIT_SECONDS, begin=begin)


def _engine(address: URL, **options: Any) -> Engine:
    _require_driver()
    return create_engine(
        _with_defaults(address), use_native_hstore=False, hide_parameters=True, **options
    )


@contextmanager
def schema_change(address: URL) -> Iterator[Connection]:
    """Open a transaction that may change the schema, for a thread without an event loop.

    It waits until no other process changes the schema, however long that takes.
    """
    engine = _engine(address, poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        require_fit(connection)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        yield connection


def require_fit(connection: Connection) -> None:
    """Raise StartupError if the server is too old or the database is not in UTF8."""
    version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    if version < OLDEST * 10_000:
        raise StartupError(
            f"The records need PostgreSQL {OLDEST} or newer, and this server has version "
            f"{version // 10_000}.",
            remedy="Use a newer server.",
        )
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise StartupError(
            f"The records need a database in UTF8, and this one is in {encoding}.",
            remedy="Create one with CREATE DATABASE reattach ENCODING 'UTF8' TEMPLATE template0.",
        )


@asynccontextmanager
async def listening(address: URL) -> AsyncIterator[AsyncIterator[str | None]]:
    """Iterate over the payloads sent to ``CHANNEL`` from now on, over one connection.

    A lost connection is made again, however long that takes, and raises nothing. None stands for
    the notifications that may have been missed in between.
    """
    listener = _Listener(address)
    try:
        await listener.connect()
        async with aclosing(listener.payloads()) as payloads:
            yield payloads
    finally:
        await listener.aclose()


class _Listener:
    def __init__(self, address: URL) -> None:
        self._address = _with_defaults(address)
        self._connection: ListeningConnection | None = None
        self._is_deaf = False

    async def connect(self) -> bool:
        """Start to listen; False if that is not possible at present."""
        _require_driver()
        import psycopg

        from reattach.records.database.connection import ListeningConnection

        _, arguments = self._address.get_dialect()().create_connect_args(self._address)
        try:
            self._connection = await ListeningConnection.open(f"LISTEN {CHANNEL}", **arguments)
        except (psycopg.Error, OSError) as error:
            self._report(error)
            return False
        self._is_deaf = False
        return True

    async def payloads(self) -> AsyncGenerator[str | None]:
        import psycopg

        while True:
            if self._connection is None:
                await asyncio.sleep(RECONNECT_SECONDS)
                if await self.connect():
                    logger.info("notifications of the records received again")
                    yield None
                continue
            try:
                received = await self._connection.payloads(LISTEN_CHECK_SECONDS)
                for payload in received:
                    yield payload
                if not received:
                    await self._connection.ask("")
            except (psycopg.Error, OSError) as error:
                self._report(error)
                await self.aclose()

    def _report(self, error: Exception) -> None:
        if not self._is_deaf:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("notifications of the records not received: %s", reason)
        self._is_deaf = True

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _with_defaults(address: URL) -> URL:
    missing = {name: value for name, value in _LIBPQ.items() if name not in address.query}
    return address.update_query_dict(missing)


def _require_driver() -> None:
    try:
        importlib.import_module("psycopg")
    except ImportError as error:
        raise StartupError(
            "PostgreSQL needs a driver that is not installed.", remedy=install_hint("cluster")
        ) from error
