"""Queries so short that handing them to a thread costs more than running them."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

_DIALECT: Final = sqlite.dialect(paramstyle="qmark")


class PreparedQuery:
    """A statement that reads a row or two by a key, compiled once for SQLite.

    It may run in the event loop: with a write-ahead log a reader waits for no writer. It takes some
    microseconds; SQLAlchemy and a thread would take hundreds.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = str(compiled)
        self._places = [(name, compiled.params[name]) for name in compiled.positiontup or ()]
        self._columns: list[tuple[int, Callable[[Any], Any]]] = []
        for place, column in enumerate(statement.selected_columns):
            convert = column.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None)
            if convert is not None:
                self._columns.append((place, convert))

    def rows(self, connection: sqlite3.Connection, values: Mapping[str, object]) -> list[list[Any]]:
        """Return the rows, with values as SQLAlchemy gives them. Raises errors of the driver."""
        places = [values.get(name, constant) for name, constant in self._places]
        rows = [list(row) for row in connection.execute(self._sql, places).fetchall()]
        for row in rows:
            for place, convert in self._columns:
                row[place] = convert(row[place])
        return rows
