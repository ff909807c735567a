"""Statements for SQLite that are compiled once for all databases of the tests.

An engine compiles each statement when it first runs it, and every test opens databases of its own:
compiling took almost half of the time of a test of the API.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.engine import Dialect


@contextmanager
def statements_compiled_once() -> Iterator[None]:
    """Give every engine for SQLite the dialect of the first, whose statements it can then use."""
    dialect: Dialect | None = None
    compiled: dict[Any, Any] = {}

    def create(url: URL, **options: Any) -> Engine:
        nonlocal dialect
        engine = create_engine(url, **options)
        dialect = dialect or engine.dialect
        engine.dialect = dialect
        engine.update_execution_options(compiled_cache=compiled)
        return engine

    with patch("reattach.records.database.sqlite.create_engine", create):
        yield
