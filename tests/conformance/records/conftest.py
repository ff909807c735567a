from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import psycopg
import pytest

from reattach.records.database.database import Database, upgrade
from reattach.records.records import Records
from tests.support.postgresql_server import DELETE_ALL_ROWS
from tests.support.record_samples import HandClock, World, a_world


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database for all tests of a module; the parameter names its kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('records') / 'records.db'}"
        upgrade(url)
        yield url
        return
    with request.getfixturevalue("postgresql_databases").with_schema() as url:
        yield url


@pytest.fixture
def url(shared_url: str) -> Iterator[str]:
    """A database without records."""
    yield shared_url
    if shared_url.startswith("sqlite"):
        path = shared_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as file:
            file.executescript(f"BEGIN;{DELETE_ALL_ROWS};COMMIT")
    else:
        with psycopg.connect(shared_url) as connection:
            connection.execute(DELETE_ALL_ROWS.encode())


@pytest.fixture(scope="module")
async def shared_database(shared_url: str) -> AsyncIterator[Database]:
    """Opened once, because compiling its statements again takes longer than most tests."""
    database = await Database.open(shared_url)
    yield database
    await database.aclose()


@pytest.fixture(scope="module")
async def other_shared_database(shared_url: str) -> AsyncIterator[Database]:
    database = await Database.open(shared_url)
    yield database
    await database.aclose()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def records(url: str, shared_database: Database, clock: HandClock) -> Records:
    return Records(shared_database, clock)


@pytest.fixture
def other_process(
    url: str, other_shared_database: Database, clock: HandClock, records: Records
) -> Records:
    """Records of another process on the same database."""
    return Records(other_shared_database, clock)


@pytest.fixture
async def world(records: Records) -> World:
    return await a_world(records)
