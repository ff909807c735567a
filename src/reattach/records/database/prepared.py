"""Look-ups that are sooner done than handed to a thread."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

_DIALECT: Final = sqlite.dialect(paramstyle="qmark")


class Glance:
    """A statement that finds a row or two by a key, and for SQLite is compiled once.

    In a write-ahead log a reader waits for no writer, so that it takes some microseconds; through
    SQLAlchemy and a thread it takes hundreds.
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
        """The rows, with values as SQLAlchemy gives them. Raises what the driver raises."""
        places = [values.get(name, constant) for name, constant in self._places]
        rows = [list(row) for row in connection.execute(self._sql, places).fetchall()]
        for row in rows:
            for place, convert in self._columns:
                row[place] = convert(row[place])
        return rows
