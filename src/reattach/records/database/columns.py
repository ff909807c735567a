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

    @override
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        process = super().result_processor(dialect, coltype)
        if process is None:
            return None

        def read(value: Any) -> Any:
            try:
                return process(value)
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
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError(f"A stored time needs a time zone: {value!r}")
        return value.astimezone(UTC)

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Word(StoredType):
    """A member of a StrEnum, stored as its value."""

    impl = String
    cache_ok = True

    def __init__(self, words: type[StrEnum], unreadable: StrEnum | None = None) -> None:
        super().__init__(unreadable)
        self.words = words

    @override
    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else self.words(value).value

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.words(value)


class OneOf(StoredType):
    """Text that is one of the values of a Literal."""

    impl = String
    cache_ok = True

    def __init__(self, values: Any, unreadable: str) -> None:
        super().__init__(unreadable)
        self.values = get_args(values)

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or value in self.values:
            return value
        raise ValueError("It is none of the values of the column.")


class Whole(StoredType):
    """A whole number. SQLite would store anything in a numeric column."""

    impl: Any = BigInteger
    cache_ok = True

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        if value is None or type(value) is int:
            return value
        raise TypeError(f"{type(value).__name__} is not a whole number")


class Position(Whole):
    """The position of a row among those of its parent. A damaged one comes first."""

    impl = Integer
    cache_ok = True


class _Json(StoredType):
    """A value that is stored as JSON text. None is NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def decode(self, text: str) -> Any:
        """Return the value of the text; raise any exception if it is damaged."""
        raise NotImplementedError

    @override
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        # Both drivers return the text itself, so that it is decoded once, straight into its type.
        decode = self.decode

        def read(text: str | None) -> Any:
            if text is None:
                return None
            try:
                return decode(text)
            except Exception as error:  # noqa: BLE001  whatever the reason, the value is damaged
                note_value(self.column, text, error)
                return self.placeholder()

        return read


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
    def decode(self, text: str) -> Any:
        return _decode_object(text)


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
    def decode(self, text: str) -> Any:
        return self._decoder.decode(text)


_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


def partial_index(name: str, column: str, where: TextClause, *, unique: bool = False) -> Index:
    """Return an index of the rows for which ``where`` is true."""
    return Index(name, column, unique=unique, sqlite_where=where, postgresql_where=where)


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
