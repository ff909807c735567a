"""Statements that are compiled once, and executed by the driver itself.

SQLAlchemy builds them and knows how each column is stored. To execute one costs it 40 to 60 µs,
several times as much as SQLite needs to find a row by its key: see docs/decisions/0020.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

_Statement = Select[Any] | Insert | Update | Delete
_Convert = Callable[[Any], Any]

Values = Mapping[str, Any]
"""The parameters of a statement by name. It ignores those that it does not have."""

Row = Mapping[Any, Any]
"""A row by the names of its columns. Rows of SQLAlchemy are such mappings too."""


class PreparedStatement:
    """A statement whose text never changes, on few rows, for SQLite and PostgreSQL.

    Its methods execute it in the transaction of the connection. Values, results and errors are
    those of SQLAlchemy. No parameter may stand for a list of values.
    """

    def __init__(self, statement: _Statement, *columns: str) -> None:
        """``columns`` are those that an INSERT or UPDATE sets to parameters of their names."""
        # Without ``inline``, PostgreSQL would return the primary key of an inserted row.
        self._statement = statement.inline() if isinstance(statement, Insert) else statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, connection: Connection, values: Values) -> list[list[Any]]:
        """Return all rows, each with its values in the order of the columns."""
        return self._compiled_for(connection).rows(connection, values)

    def mappings(self, connection: Connection, values: Values) -> list[dict[str, Any]]:
        """Return all rows, each with its values by the names of the columns."""
        compiled = self._compiled_for(connection)
        names = compiled.names
        return [dict(zip(names, row, strict=True)) for row in compiled.rows(connection, values)]

    def first(self, connection: Connection, values: Values) -> dict[str, Any] | None:
        """Return the first row by the names of its columns; None if there is no row."""
        rows = self.mappings(connection, values)
        return rows[0] if rows else None

    def value(self, connection: Connection, values: Values) -> Any:
        """Return the first value of the first row; None if there is no row."""
        rows = self.rows(connection, values)
        return rows[0][0] if rows else None

    def run(self, connection: Connection, values: Values) -> int:
        """Execute a statement that returns no rows, and return the number of changed ones."""
        return self._compiled_for(connection).run(connection, values)

    def run_each(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute a statement that returns no rows with each of several sets of values."""
        compiled = self._compiled_for(connection)
        for values in rows:
            compiled.run(connection, values)

    def _compiled_for(self, connection: Connection) -> "_Compiled":
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = _Compiled(self._statement, connection.dialect, self._columns)
            self._compiled[connection.dialect.name] = compiled
        return compiled


class _Compiled:
    """The text of a statement for one kind of database, and the conversions of its values."""

    def __init__(self, statement: _Statement, dialect: Dialect, columns: Sequence[str]) -> None:
        keys = None if isinstance(statement, Select) else list(columns)
        compiled = statement.compile(dialect=dialect, column_keys=keys)
        self._sql = str(compiled)
        self._order = compiled.positiontup
        """The names of the parameters in order; None if the driver takes them by name."""
        self._constants: dict[str, Any] = {}
        self._given: list[tuple[str, _Convert | None]] = []
        for name, parameter in compiled.binds.items():
            if parameter.expanding:
                raise TypeError(f"The parameter {name} stands for a list.")
            convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
            if parameter.required:
                self._given.append((name, convert))
            else:
                value = parameter.effective_value
                self._constants[name] = value if convert is None else convert(value)
        result = tuple(statement.exported_columns)
        self.names: Final = tuple(column.name for column in result)
        self._conversions: list[tuple[int, _Convert]] = []
        for place, column in enumerate(result):
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                self._conversions.append((place, convert))

    def rows(self, connection: Connection, values: Values) -> list[list[Any]]:
        bound = self._bound(values)
        try:
            found = driver_of(connection).execute(self._sql, bound).fetchall()
        except connection.dialect.loaded_dbapi.Error as error:
            raise self._wrapped(error, connection.dialect) from error
        rows = [list(row) for row in found]
        for row in rows:
            for place, convert in self._conversions:
                row[place] = convert(row[place])
        return rows

    def run(self, connection: Connection, values: Values) -> int:
        bound = self._bound(values)
        try:
            return cast("int", driver_of(connection).execute(self._sql, bound).rowcount)
        except connection.dialect.loaded_dbapi.Error as error:
            raise self._wrapped(error, connection.dialect) from error

    def _bound(self, values: Values) -> Any:
        bound = self._constants.copy()
        for name, convert in self._given:
            bound[name] = values[name] if convert is None else convert(values[name])
        return bound if self._order is None else [bound[name] for name in self._order]

    def _wrapped(self, error: Exception, dialect: Dialect) -> BaseException:
        """Return the driver's error as SQLAlchemy raises it, without the values."""
        return DBAPIError.instance(
            self._sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True,
            dialect=dialect,
        )  # fmt: skip


def begin(connection: Connection, statement: str) -> None:
    """Begin a transaction with the statement.

    Raises DBAPIError, with ``connection_invalidated`` if the connection was lost.
    """
    dialect, driver = connection.dialect, driver_of(connection)
    try:
        driver.execute(statement)
    except dialect.loaded_dbapi.Error as error:
        is_lost = dialect.is_disconnect(error, driver, None)
        if is_lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, dialect.loaded_dbapi.Error, hide_parameters=True,
            connection_invalidated=is_lost, dialect=dialect,
        ) from error  # fmt: skip


def driver_of(connection: Connection) -> Any:
    """Return the driver's own connection."""
    return connection.connection.dbapi_connection
