"""The databases of records: SQLite at ``path``, unless ``records_url`` is another one.

Tests that stop a PostgreSQL have one of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from reattach.domain.clock import SystemClock
from reattach.records.database.database import Database, upgrade
from reattach.records.records import Records
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.relay import Relay


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def records_url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def records(records_url: str) -> AsyncIterator[Records]:
    records = await Records.open(records_url, clock=SystemClock())
    yield records
    await records.aclose()


@pytest.fixture
async def database(records_url: str) -> AsyncIterator[Database]:
    database = await Database.open(records_url)
    yield database
    await database.aclose()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A server that tests may stop; its one database has the schema."""
    with PostgresqlServer() as server:
        upgrade(server.url())
        yield server


@pytest.fixture
def relay(server: PostgresqlServer) -> Iterator[Relay]:
    with Relay(server.address) as relay:
        yield relay
