"""How values of the domain stand in columns, on every database the same."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, String
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

Ordinal = BigInteger().with_variant(Integer, "sqlite")
"""The order in which rows came to be; breaks the ties of every list."""

Json = JSON(none_as_null=True)
"""A JSON value that is given back as it came. None is NULL."""


class Moment(TypeDecorator[datetime]):
    """An aware datetime with microseconds, in UTC when it comes back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError(f"A stored moment needs a time zone: {value!r}")
        return value.astimezone(UTC)

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Word(TypeDecorator[StrEnum]):
    """A member of a StrEnum, by its value."""

    impl = String
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    @override
    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else self.words(value).value

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.words(value)


class Typed(TypeDecorator[Any]):
    """A msgspec Struct, a dataclass, or a tuple of them, as JSON."""

    impl = Json
    cache_ok = True

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else msgspec.to_builtins(value)

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else msgspec.convert(value, self.shape)


class UnstorableError(ValueError):
    """A value that no database takes."""


def to_json(value: object) -> str:
    """The JSON text of what a column of type ``Json`` holds.

    Raises UnstorableError for text that is no Unicode, and for a number that is no JSON.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=dict
        )
        text.encode()
    except ValueError as error:
        raise UnstorableError(str(error)) from error
    return text
