"""What is particular to PostgreSQL: its driver, its time-outs, its locks and its notices.

A server of version 14 or newer whose database is in UTF8. The URL's query is libpq's: ``sslmode``,
``sslrootcert``, ``host`` with the folder of a socket, ``target_session_attrs``, ``passfile`` ...

Connections of one process: at most ``WRITERS`` and ``READERS``, one that listens, and one that
renews the lease.
"""

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, Connection, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from reattach.domain.errors import StartupError
from reattach.extras import install_hint
from reattach.records.database.columns import to_json

if TYPE_CHECKING:
    from reattach.records.database.connection import BoundedConnection

logger = logging.getLogger(__name__)

WRITERS: Final = 6
"""Connections that write; a transaction is milliseconds, and a server has a hundred in all."""

READERS: Final = 4
"""Connections that read."""

CONNECT_SECONDS: Final = 3
"""How long connecting may take."""

LOCK_SECONDS: Final = 5.0
"""How long a statement may wait for a lock."""

STATEMENT_SECONDS: Final = 300.0
"""How long the server may work on one statement, from its first parameter to its last row: a large
answer over a slow network takes minutes. A server that is silent is given up long before that."""

IDLE_SECONDS: Final = 5.0
"""How long a process may stop within a transaction, whose locks others wait for: less than a lease,
so that the runs of a process that was paused there can be taken over."""

TURN_SECONDS: Final = 10.0
"""How long a transaction waits for a connection of this process."""

RECONNECT_SECONDS: Final = 1.0
"""The wait before the connection that listens is made anew."""

LISTEN_CHECK_SECONDS: Final = 10.0
"""How often that connection is asked whether it is still there."""

CHANNEL: Final = "reattach"
"""Where this project's notices go."""

OLDEST: Final = 14
"""The oldest version of the server that the tests of the PostgreSQL project still cover."""

_UPGRADE_LOCK: Final = 0x7265_6174_7461_6368
"""The advisory lock of the one that changes the schema: "reattach"."""

_LIBPQ: Final = {
    "application_name": "reattach",
    "client_encoding": "UTF8",
    "connect_timeout": str(CONNECT_SECONDS),
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
}
"""What libpq is told where the URL does not say otherwise: a dead network is noticed in seconds."""

_SESSION: Final = (
    f"SET lock_timeout = {int(LOCK_SECONDS * 1000)};"
    f"SET statement_timeout = {int(STATEMENT_SECONDS * 1000)};"
    f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}"
)


def writers(address: URL, *, connections: int = WRITERS) -> AsyncEngine:
    """Connections that write, each transaction READ COMMITTED: every statement sees the newest."""
    return _engine(address, connections, "READ COMMITTED", _SESSION)


def readers(address: URL) -> AsyncEngine:
    """Connections that read: each transaction sees one state, and waits for no writer.

    They hold no locks, and a slow network may take long for what the server has sent.
    """
    idle = f"SET idle_in_transaction_session_timeout = {int(STATEMENT_SECONDS * 1000)}"
    read_only = f"{_SESSION};{idle};SET default_transaction_read_only = on"
    return _engine(address, READERS, "REPEATABLE READ", read_only)


def _engine(address: URL, connections: int, isolation: str, session: str) -> AsyncEngine:
    kind = _bounded_connection()
    return create_async_engine(
        _with_defaults(address),
        pool_size=connections,
        max_overflow=0,
        pool_pre_ping=True,
        isolation_level=isolation,
        json_serializer=to_json,
        use_native_hstore=False,
        hide_parameters=True,
        connect_args={"async_creator_fn": partial(kind.begun, session)},
    )


@contextmanager
def preparing(address: URL) -> Iterator[Connection]:
    """A transaction that changes the schema, for a thread without event loop; one at a time.

    It waits for as long as another one takes, in whichever process.
    """
    _require_driver()
    engine = create_engine(
        _with_defaults(address),
        poolclass=NullPool,
        use_native_hstore=False,
        hide_parameters=True,
    )
    with engine.connect() as connection, connection.begin():
        require_fit(connection)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        yield connection


def require_fit(connection: Connection) -> None:
    """Raise StartupError for a server that is too old, or a database in another encoding."""
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
    """The notices that others send to ``CHANNEL`` from now on, by one connection.

    It is made anew for as long as it takes when it is lost. None stands for the notices that may
    have been missed meanwhile. Raises nothing because of the connection.
    """
    listener = _Listener(address)
    try:
        await listener.connect()
        async with aclosing(listener.notices()) as notices:
            yield notices
    finally:
        await listener.aclose()


class _Listener:
    def __init__(self, address: URL) -> None:
        self._address = _with_defaults(address)
        self._connection: BoundedConnection | None = None
        self._deaf = False

    async def connect(self) -> bool:
        """Begin to listen; False if that is not possible at present."""
        import psycopg

        _, arguments = self._address.get_dialect()().create_connect_args(self._address)
        try:
            self._connection = await _bounded_connection().begun(f"LISTEN {CHANNEL}", **arguments)
        except (psycopg.Error, OSError) as error:
            self._tell(error)
            return False
        self._deaf = False
        return True

    async def notices(self) -> AsyncGenerator[str | None]:
        import psycopg

        while True:
            if self._connection is None:
                await asyncio.sleep(RECONNECT_SECONDS)
                if await self.connect():
                    logger.info("the records' notices are heard again")
                    yield None
                continue
            try:
                heard = self._connection.notifies(timeout=LISTEN_CHECK_SECONDS)
                async with aclosing(heard) as heard:
                    async for notice in heard:
                        yield notice.payload
                await self._connection.execute("")
            except (psycopg.Error, OSError) as error:
                self._tell(error)
                await self.aclose()

    def _tell(self, error: Exception) -> None:
        if not self._deaf:
            reason = str(error).strip().partition("\n")[0]
            logger.warning("the records' notices are not heard at present: %s", reason)
        self._deaf = True

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


def _bounded_connection() -> "type[BoundedConnection]":
    _require_driver()
    from reattach.records.database.connection import BoundedConnection

    return BoundedConnection
