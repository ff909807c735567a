"""Column types for the values of the domain, and indexes, the same on every database."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, get_args

import msgspec
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Index, Integer, String, Text, TextClause
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

from reattach.records.database.damage import note_value

Ordinal = BigInteger().with_variant(Integer, "sqlite")
"""The order in which rows were created. It breaks ties in every list."""

UNREADABLE_MOMENT: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The placeholder for a time that cannot be read."""


class StoredType(TypeDecorator[Any]):
    """A column that can always be read: ``unreadable`` replaces a damaged value."""

    impl: Any = String
    cache_ok = True

    def __init__(self, unreadable: Any = None) -> None:
        super().__init__()
        self.unreadable = unreadable
        self.column = ""
        """The table and name of the column, for the server's log."""

    def placeholder(self) -> Any:
        """Return the value that replaces a damaged one."""
        return self.unreadable

    def decoder(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Return the function from a value of the driver; it raises any exception for damage."""
        raise NotImplementedError

    @override
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        # The driver's own value is decoded: SQLAlchemy would call two functions more for each.
        decode = self.decoder(dialect)

        def read(value: Any) -> Any:
            if value is None:
                return None
            try:
                return decode(value)
            except Exception as error:  # noqa: BLE001  whatever the reason, the value is damaged
                note_value(self.column, value, error)
                return self.placeholder()

        return read


class Characters(StoredType):
    """Text. SQLite would store bytes in a text column; they are shown as far as they are text."""

    impl = String
    cache_ok = True

    @override
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return self._read if dialect.name == "sqlite" else None

    def _read(self, value: Any) -> str | None:
        if value is None or type(value) is str:
            return value
        note_value(self.column, value, TypeError(type(value).__name__))
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class LongText(Characters):
    """Text that PostgreSQL keeps in a column without a length."""

    impl = Text
    cache_ok = True


class Moment(StoredType):
    """An aware datetime with microseconds, returned in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(UNREADABLE_MOMENT)

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _given_in_utc(value)

    @override
    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return _to_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], datetime]:
        return _of_text if dialect.name == "sqlite" else _in_utc


def moment_of(stored: str | datetime) -> datetime:
    """Return the time of a stored value that no ``Moment`` decoded: text in UTC in SQLite."""
    return _of_text(stored) if isinstance(stored, str) else _in_utc(stored)


def _to_text(value: datetime | None) -> str | None:
    """Return the text by which SQLAlchemy stores a time in SQLite; it takes four times as long."""
    if value is None:
        return None
    if value.tzinfo is not UTC:
        value = _given_in_utc(value)
    return value.isoformat(" ", "microseconds")[:_TEXT_CHARS]


_TEXT_CHARS: Final = len("2026-01-01 00:00:00.000000")


def _of_text(value: str) -> datetime:
    # To replace the time zone of a parsed time takes ten times as long as to parse it.
    return datetime.fromisoformat(value + "Z")


def _in_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def _given_in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise TypeError(f"A stored time needs a time zone: {value!r}")
    return value.astimezone(UTC)


class Word(StoredType):
    """A member of a StrEnum, stored as its value."""

    impl = String
    cache_ok = True

    def __init__(self, words: type[StrEnum], unreadable: StrEnum | None = None) -> None:
        super().__init__(unreadable)
        self.words = words
        self._by_value = {word.value: word for word in words}

    @override
    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else self.words(value).value

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], StrEnum]:
        return self._by_value.__getitem__


class OneOf(StoredType):
    """Text that is one of the values of a Literal."""

    impl = String
    cache_ok = True

    def __init__(self, values: Any, unreadable: str) -> None:
        super().__init__(unreadable)
        self.values = get_args(values)

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], str]:
        return {value: value for value in self.values}.__getitem__


class Whole(StoredType):
    """A whole number. SQLite would store anything in a numeric column."""

    impl: Any = BigInteger
    cache_ok = True

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], int]:
        return _whole


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    raise TypeError(f"{type(value).__name__} is not a whole number")


class Position(Whole):
    """The position of a row among those of its parent. A damaged one comes first."""

    impl = Integer
    cache_ok = True


class _Json(StoredType):
    """A value that is stored as JSON text, which both drivers return. None is NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True


class JsonObject(_Json):
    """A JSON object that is returned unchanged."""

    cache_ok = True

    def __init__(self, *, required: bool = False) -> None:
        super().__init__()
        self.required = required

    @override
    def placeholder(self) -> Any:
        return {} if self.required else None

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _decode_object


class Typed(_Json):
    """A msgspec Struct, a dataclass, or a tuple of them."""

    cache_ok = True

    def __init__(self, shape: Any, unreadable: Any = None) -> None:
        super().__init__(unreadable)
        self.shape = shape

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.shape)

    @override
    def decoder(self, dialect: Dialect) -> Callable[[Any], Any]:
        return self._decoder.decode


_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


def partial_index(name: str, column: str, where: TextClause, *, unique: bool = False) -> Index:
    """Return an index of the rows for which ``where`` is true."""
    return _PartialIndex(name, column, where, unique=unique)


class _PartialIndex(Index):
    """An index that gives SQLAlchemy its condition when the index is created or compared.

    SQLAlchemy imports the code of both databases for such a condition. A start on an existing
    database needs one of them.
    """

    def __init__(self, name: str, column: str, where: TextClause, *, unique: bool) -> None:
        super().__init__(name, column, unique=unique)
        self._where = where

    @cached_property
    def dialect_options(self) -> Any:
        options = super().dialect_options
        for dialect in ("sqlite", "postgresql"):
            options[dialect]["where"] = self._where
        return options


class UnstorableError(ValueError):
    """A value that no database accepts."""


def to_json(value: object) -> str:
    """Return the value of a JSON column as text.

    Raises UnstorableError for text that is not valid Unicode, and for NaN and infinity.
    """
    try:
        if not isinstance(value, Mapping):  # A typed value: it has no floating-point numbers.
            return msgspec.json.encode(value).decode()
        text = json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=dict
        )
        text.encode()
    except ValueError as error:
        raise UnstorableError(str(error)) from error
    return text
