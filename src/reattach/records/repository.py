"""The base class of the repositories, of which each kind of rows has one."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, func, select

from reattach.domain.clock import Clock
from reattach.records.base import Agent, Block, Conversation
from reattach.records.database.database import Database

_T = TypeVar("_T", Agent, Block, Conversation)


def execute(connection: Connection, statement: Executable) -> None:
    """Execute a statement that is a transaction of its own and whose result does not matter."""
    connection.execute(statement)


def advisory_lock(connection: Connection, key: int) -> None:
    """Let one process at a time go on, until its transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(key)))


class Repository:
    """The rows of one kind in the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def _changed_fields(self, before: _T, after: _T, fixed: Collection[str]) -> dict[str, Any]:
        """Return the fields of ``after`` that were replaced, and ``updated_at``, by default now.

        Raises ValueError for a field that never changes.
        """
        values = {
            field.name: getattr(after, field.name)
            for field in fields(after)
            # By identity, because 1 == True, and they differ as JSON.
            if getattr(after, field.name) is not getattr(before, field.name)
        }
        if wrong := values.keys() & fixed:
            raise ValueError(f"These fields cannot be changed: {', '.join(sorted(wrong))}")
        return {"updated_at": self._clock.now()} | values
