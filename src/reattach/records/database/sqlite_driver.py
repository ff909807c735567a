"""aiosqlite for SQLAlchemy, with one visit to its thread for a statement instead of four.

The dialect that comes with SQLAlchemy makes a cursor, executes, fetches and closes, and each of
these waits for the thread, which costs more than most statements. Everything else is that dialect.
"""

import sqlite3
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
    SQLiteDialect_aiosqlite,
)
from typing_extensions import override

DRIVER_NAME: Final = "sqlite+reattach"
"""For URLs: which driver it is."""


class _Outcome(NamedTuple):
    """What a cursor has to tell once it has executed."""

    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    rows: Sequence[Any] = ()


def _executed(
    connection: sqlite3.Connection, operation: str, parameters: Any, *, many: bool
) -> _Outcome:
    cursor = connection.cursor()
    try:
        if many:
            cursor.executemany(operation, parameters)
        else:
            cursor.execute(operation, parameters or ())
        rows = cursor.fetchall() if cursor.description else ()
        return _Outcome(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
    finally:
        cursor.close()


class _Cursor(AsyncAdapt_aiosqlite_cursor):
    """Has nothing in the thread before it executes, nor after that."""

    __slots__ = ("_outcome",)

    def __init__(self, adapt_connection: AsyncAdapt_dbapi_connection) -> None:
        self._adapt_connection = adapt_connection
        self._connection = adapt_connection._connection
        self._rows = deque()
        self._outcome = _Outcome()

    @property
    @override
    def description(self) -> Any:
        return self._outcome.description

    @property
    @override
    def rowcount(self) -> int:
        return self._outcome.rowcount

    @property
    @override
    def lastrowid(self) -> int:
        return cast("int", self._outcome.lastrowid)

    @override
    async def _execute_async(self, operation: Any, parameters: Any) -> None:
        await self._execute_there(operation, parameters, many=False)

    @override
    async def _executemany_async(self, operation: Any, seq_of_parameters: Any) -> None:
        await self._execute_there(operation, seq_of_parameters, many=True)

    async def _execute_there(self, operation: str, parameters: Any, *, many: bool) -> None:
        connection = cast("Any", self._connection)
        async with self._adapt_connection._execute_mutex:
            self._outcome = await connection._execute(
                _executed, connection._conn, operation, parameters, many=many
            )
        self._rows = deque(self._outcome.rows)

    @override
    async def _async_soft_close(self) -> None:
        pass

    @override
    def close(self) -> None:
        self._rows.clear()


class _Connection(AsyncAdapt_aiosqlite_connection):
    __slots__ = ()

    _cursor_cls = _Cursor


class _Dbapi(AsyncAdapt_aiosqlite_dbapi):
    @override
    def connect(self, *arg: Any, **kw: Any) -> AsyncAdapt_aiosqlite_connection:
        return _Connection(self, super().connect(*arg, **kw)._connection)


class Dialect(SQLiteDialect_aiosqlite):
    supports_statement_cache = True

    @classmethod
    @override
    def import_dbapi(cls) -> AsyncAdapt_aiosqlite_dbapi:
        standard = super().import_dbapi()
        return _Dbapi(standard.aiosqlite, standard.sqlite)


registry.register(DRIVER_NAME.replace("+", "."), __name__, "Dialect")
