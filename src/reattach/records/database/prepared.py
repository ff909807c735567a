"""Statements that are compiled once, and executed by the driver itself.

SQLAlchemy builds them and knows how each column is stored. To execute one costs it 40 to 60 µs,
several times as much as SQLite needs to find a row by its key: see docs/decisions/0020.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, Delete, Dialect, Insert, Select, Table, Update, bindparam, insert
from sqlalchemy.exc import DBAPIError

_T = TypeVar("_T")

_Statement = Select[Any] | Insert | Update | Delete
_Convert = Callable[[Any], Any]

Values = Mapping[str, Any]
"""The parameters of a statement by name. It ignores those that it does not have."""

Row = Mapping[Any, Any]
"""A row by the names of its columns. Rows of SQLAlchemy are such mappings too."""

_INSERTED_ROWS: Final = 8
"""The most rows of one INSERT of PostgreSQL. It bounds how many texts there are of each."""

_TOGETHER: Final = 16
"""The most statements in one of PostgreSQL."""


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
        return ask(connection, (self, values))[0]

    def asking(
        self, connection: Connection, values: Values
    ) -> Generator[Any, Any, list[list[Any]]]:
        """Return all rows as ``rows`` does on PostgreSQL, and yield when the connection waits."""
        return (yield from asking(connection, (self, values)))[0]

    def mappings(self, connection: Connection, values: Values) -> list[dict[str, Any]]:
        """Return all rows, each with its values by the names of the columns."""
        return self.named(connection, self.rows(connection, values))

    def named(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return rows that ``ask`` returned for this statement, by the names of the columns."""
        names = self.compiled_for(connection).names
        return [dict(zip(names, row, strict=True)) for row in rows]

    def first(self, connection: Connection, values: Values) -> dict[str, Any] | None:
        """Return the first row by the names of its columns; None if there is no row."""
        rows = self.mappings(connection, values)
        return rows[0] if rows else None

    def value(self, connection: Connection, values: Values) -> Any:
        """Return the first value of the first row; None if there is no row."""
        rows = self.rows(connection, values)
        return rows[0][0] if rows else None

    def executed(self, connection: Connection, values: Values) -> Generator[Any, Any, int]:
        """Execute it as ``run`` does on PostgreSQL, and yield when the connection waits."""
        compiled = self.compiled_for(connection)
        bound, driver = compiled.bound(values), driver_of(connection)
        try:
            (answer,) = yield from driver.asking((compiled.sql, bound))
        except connection.dialect.loaded_dbapi.Error as error:
            raise _wrapped(connection, compiled.sql, error) from error
        return cast("int", answer.changed)

    def run(self, connection: Connection, values: Values) -> int:
        """Execute a statement that returns no rows, and return the number of changed ones."""
        compiled = self.compiled_for(connection)
        bound, driver = compiled.bound(values), driver_of(connection)
        try:
            if compiled.is_numbered:
                return cast("int", driver.ask((compiled.sql, bound))[0].changed)
            return cast("int", driver.execute(compiled.sql, bound).rowcount)
        except connection.dialect.loaded_dbapi.Error as error:
            raise _wrapped(connection, compiled.sql, error) from error

    def compiled_for(self, connection: Connection) -> "_Compiled":
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = _Compiled(self._statement, connection.dialect, self._columns)
            self._compiled[connection.dialect.name] = compiled
        return compiled


Rows = Sequence[Sequence[Any]]
"""Rows of ``ask``, each with its values in the order of the columns."""

Query = tuple[PreparedStatement, Values]
"""A statement with the values of its parameters."""


Steps = Generator[Sequence[Query], list[list[list[Any]]], _T]
"""A transaction that yields statements, and gets the rows of each as ``ask`` returns them.

In between it may defer changes (``Changes``), and execute more statements by itself. On PostgreSQL
a thread repeats it then, because the event loop cannot wait.
"""


class LeftToThreadError(Exception):
    """The event loop cannot go on with a transaction. It rolls it back, and a thread repeats it."""


def take_steps(connection: Connection, steps: Steps[_T]) -> _T:
    """Execute the statements of a transaction in the calling thread, and return its result."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send(ask(connection, *asked))
    except StopIteration as end:
        return cast("_T", end.value)
    finally:
        steps.close()


def steps_taken(connection: Connection, steps: Steps[_T]) -> Generator[Any, Any, _T]:
    """Do the same on PostgreSQL, and yield when the connection must wait."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send((yield from asking(connection, *asked)))
    except StopIteration as end:
        return cast("_T", end.value)
    finally:
        steps.close()


def ask(connection: Connection, *asked: Query) -> list[list[list[Any]]]:
    """Execute statements in order and return the rows of each, as ``PreparedStatement.rows`` does.

    PostgreSQL takes one round trip for all.
    """
    found = [(one.compiled_for(connection), values) for one, values in asked]
    statements = [(compiled.sql, compiled.bound(values)) for compiled, values in found]
    driver = driver_of(connection)
    try:
        if found[0][0].is_numbered:
            rows = [answer.rows for answer in driver.ask(*statements)]
        else:
            rows = [list(map(list, driver.execute(*one).fetchall())) for one in statements]
    except connection.dialect.loaded_dbapi.Error as error:
        raise _wrapped(connection, statements[0][0], error) from error
    return [compiled.converted(one) for (compiled, _), one in zip(found, rows, strict=True)]


def asking(connection: Connection, *asked: Query) -> Generator[Any, Any, list[list[list[Any]]]]:
    """Do the same on PostgreSQL, and yield when the connection must wait."""
    found = [(one.compiled_for(connection), values) for one, values in asked]
    statements = [(compiled.sql, compiled.bound(values)) for compiled, values in found]
    try:
        answers = yield from driver_of(connection).asking(*statements)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _wrapped(connection, statements[0][0], error) from error
    return [
        compiled.converted(answer.rows)
        for (compiled, _), answer in zip(found, answers, strict=True)
    ]


@cache
def upsert(table: Table, dialect: str) -> PreparedStatement:
    """Return the statement that inserts a row, or updates the one with its primary key.

    Its values are those of all columns.
    """
    # A server uses one of the two dialects, so the other is not imported.
    statement = import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
    updating = statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={one.name: statement.excluded[one.name] for one in table.c if not one.primary_key},
    )
    return PreparedStatement(updating, *table.c.keys())


class PreparedInsert:
    """An INSERT of a few rows of one table, whose columns are set to values of their names."""

    def __init__(self, table: Table, *columns: str) -> None:
        self._table = table
        self._names = [
            [(name, f"{name}_{number}") for name in columns] for number in range(_INSERTED_ROWS)
        ]
        """The columns and their parameters in each row of a statement."""
        self._by_count: dict[int, PreparedStatement] = {}

    def add_to(self, changes: "Changes", rows: Sequence[Values]) -> None:
        """Add the rows to the changes, in order."""
        most = changes.most_rows
        for first in range(0, len(rows), most):
            piece = rows[first : first + most]
            values = {
                parameter: row[name]
                for row, names in zip(piece, self._names, strict=False)
                for name, parameter in names
            }
            changes.add(self._of(len(piece)), values)

    def _of(self, count: int) -> PreparedStatement:
        statement = self._by_count.get(count)
        if statement is None:
            columns = self._table.c
            rows: list[dict[str, Any]] = [
                {name: bindparam(parameter, type_=columns[name].type) for name, parameter in names}
                for names in self._names[:count]
            ]
            statement = PreparedStatement(insert(self._table).values(rows))
            self._by_count[count] = statement
        return statement


class Changes:
    """Changes of one transaction that do not depend on each other.

    PostgreSQL makes them by one statement, which is sent together with the next one or the commit.
    SQLite makes them in their order. The first one may be a query, whose rows are dropped.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect: Final = connection.dialect.name
        self._at_once = self.dialect == "postgresql"
        # SQLite notes each page before an INSERT of several rows, which may fail half-way.
        self.most_rows = _INSERTED_ROWS if self._at_once else 1
        """The most rows of one INSERT."""
        self._made: list[tuple[PreparedStatement, Values]] = []

    def add(self, statement: PreparedStatement, values: Values) -> None:
        """Let the statement be executed with the others."""
        self._made.append((statement, values))

    def make(self) -> None:
        """Execute all of them. On PostgreSQL their error may come later in the transaction."""
        connection = self._connection
        if not self._at_once:
            for statement, values in self._made:
                statement.run(connection, values)
            return
        found = [(one.compiled_for(connection), values) for one, values in self._made]
        for first in range(0, len(found), _TOGETHER):
            piece = found[first : first + _TOGETHER]
            sql = _together(tuple(compiled for compiled, _ in piece))
            bound = [value for compiled, values in piece for value in compiled.bound(values)]
            driver_of(connection).defer(sql, bound)


@lru_cache(maxsize=512)
def _together(statements: "tuple[_Compiled, ...]") -> str:
    """Return the text of one statement of PostgreSQL that executes all, the first one first.

    Each sees the state before the statement; foreign keys are checked at its end.
    """
    texts, before = [], 0
    for statement in statements:
        shift = before
        texts.append(_NUMBER.sub(lambda match: f"${int(match[1]) + shift}", statement.sql))  # noqa: B023
        before += statement.parameters
    # The others are executed from the last on.
    others = [f"c{place} AS ({sql})" for place, sql in enumerate(texts[1:])][::-1]
    return f"WITH {', '.join(others)} {texts[0]}" if others else texts[0]


class _Compiled:
    """The text of a statement for one kind of database, and the conversions of its values."""

    def __init__(self, statement: _Statement, dialect: Dialect, columns: Sequence[str]) -> None:
        keys = None if isinstance(statement, Select) else list(columns)
        compiled = statement.compile(dialect=dialect, column_keys=keys)
        self.sql = str(compiled)
        order: Sequence[str] | None = compiled.positiontup
        self.is_numbered: Final = order is None
        if order is None:
            self.sql, order = _numbered(self.sql)
        self.parameters: Final = len(order)
        self._constants: list[Any] = [None] * len(order)
        """The values of the parameters in order, except for those that are given."""
        self._given: list[tuple[int, str, _Convert | None]] = []
        for place, name in enumerate(order):
            parameter = compiled.binds[name]
            if parameter.expanding:
                raise TypeError(f"The parameter {name} stands for a list.")
            convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
            if parameter.required:
                self._given.append((place, name, convert))
            else:
                value = parameter.effective_value
                self._constants[place] = value if convert is None else convert(value)
        result = tuple(statement.exported_columns)
        self.names: Final = tuple(column.name for column in result)
        self._conversions: list[tuple[int, _Convert]] = []
        for place, column in enumerate(result):
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                self._conversions.append((place, convert))

    def converted(self, rows: list[list[Any]]) -> list[list[Any]]:
        """Return the driver's rows with the values of the columns."""
        for row in rows:
            for place, convert in self._conversions:
                row[place] = convert(row[place])
        return rows

    def bound(self, values: Values) -> list[Any]:
        """Return the values of all parameters in order, as the driver takes them."""
        bound = self._constants.copy()
        for place, name, convert in self._given:
            bound[place] = values[name] if convert is None else convert(values[name])
        return bound


def committing(connection: Connection) -> Generator[Any, Any, None]:
    """Commit on PostgreSQL, and yield when the connection must wait."""
    try:
        yield from driver_of(connection).committing()
    except connection.dialect.loaded_dbapi.Error as error:
        raise _wrapped(connection, "COMMIT", error) from error


def _wrapped(connection: Connection, sql: str, error: Exception) -> BaseException:
    """Return the driver's error as SQLAlchemy raises it, without the values.

    Its ``connection_invalidated`` says that the connection was lost.
    """
    dialect = connection.dialect
    is_lost = dialect.is_disconnect(error, driver_of(connection), None)  # type: ignore[arg-type]
    if is_lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True,
        connection_invalidated=is_lost, dialect=dialect,
    )  # fmt: skip


_NAME: Final = re.compile(r"%\((\w+)\)s|%%")
_NUMBER: Final = re.compile(r"\$(\d+)")


def _numbered(sql: str) -> tuple[str, Sequence[str]]:
    """Return the text with numbers instead of names of parameters, and the names in order.

    PostgreSQL knows only numbers; the driver would replace the names at each execution.
    """
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        if match[1] is None:
            return "%"
        return f"${names.setdefault(match[1], len(names) + 1)}"

    return _NAME.sub(number, sql), list(names)


def begin(connection: Connection, statement: str) -> None:
    """Begin a transaction with the statement.

    Raises DBAPIError, with ``connection_invalidated`` if the connection was lost.
    """
    try:
        driver_of(connection).execute(statement)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _wrapped(connection, statement, error) from error


def driver_of(connection: Connection) -> Any:
    """Return the driver's own connection."""
    return connection.connection.dbapi_connection
