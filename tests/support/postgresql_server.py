"""The PostgreSQL of the tests: one server for all of them, and a database for each that asks.

REATTACH_TEST_DATABASE_URL names another server, by a role that may create databases.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import psycopg
import pytest
from sqlalchemy import make_url

from reattach.domain.ids import new_uuid
from reattach.records.database import schema
from reattach.records.database.database import upgrade
from reattach.testing.programs.postgresql import PostgresqlServer

_DISCONNECT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid != pg_backend_pid()
"""

DELETE_ALL_ROWS = ";".join(
    f"DELETE FROM {table.name}" for table in reversed(schema.metadata.sorted_tables)
)


INITIALISE = PostgresqlServer._initialise
"""Makes the files of a PostgreSQL with ``initdb``, for four times the CPU of copying them."""


class EmptyCluster:
    """The files of a PostgreSQL without databases, which ``initdb`` makes once for all workers."""

    def __init__(self) -> None:
        self._folder = Path()
        self._owner = 0

    def begin(self) -> None:
        self._folder, self._owner = Path(tempfile.mkdtemp(prefix="reattach-pg-empty-")), os.getpid()

    def close(self) -> None:
        """Remove the files, unless this is a fork of the process that began."""
        if self._owner == os.getpid():
            shutil.rmtree(self._folder)

    @contextmanager
    def is_copied(self) -> Iterator[None]:
        """Let every PostgresqlServer of this process begin with a copy of the files."""
        password, data = self._folder / "password", self._folder / "data"

        def copy(server: PostgresqlServer) -> None:
            with (self._folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not password.exists():
                    INITIALISE(server)
                    _copy_folder(server._data, data)
                    password.write_text(server.password)
                    return
            server.password = password.read_text()
            _copy_folder(data, server._data)

        with patch.object(PostgresqlServer, "_initialise", copy):
            yield


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with the owners of its files."""
    subprocess.run(["cp", "-a", source, target], check=True)


EMPTY_CLUSTER = EmptyCluster()


def pytest_configure() -> None:
    EMPTY_CLUSTER.begin()


def pytest_unconfigure() -> None:
    EMPTY_CLUSTER.close()


@pytest.fixture(scope="session", autouse=True)
def databases_begin_with_copied_files() -> Iterator[None]:
    with EMPTY_CLUSTER.is_copied():
        yield


class Databases:
    """Databases on the server of the URL."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._names: list[str] = []
        self._free: list[str] = []

    @contextmanager
    def with_schema(self) -> Iterator[str]:
        """The URL of a database whose tables are there and empty. It is used again and again."""
        if not self._free:
            self._free.append(self._created())
            upgrade(self._at(self._free[-1]))
        name = self._free.pop()
        yield self._at(name)
        self._do(f"{_DISCONNECT};{DELETE_ALL_ROWS}", name)
        self._free.append(name)

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of a database without anything."""
        yield self._at(self._created())

    def close(self) -> None:
        for name in self._names:
            self._do(f"DROP DATABASE {name} WITH (FORCE)")

    def _created(self) -> str:
        name = f"reattach_test_{new_uuid().replace('-', '')}"
        self._do(f"CREATE DATABASE {name}")
        self._names.append(name)
        return name

    def _do(self, statements: str, name: str | None = None) -> None:
        url = self._at(name or self._url.database)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statements.encode())

    def _at(self, name: str | None) -> str:
        url = self._url.set(drivername="postgresql", database=name)
        return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[Databases]:
    if (given := os.environ.get("REATTACH_TEST_DATABASE_URL")) is not None:
        databases = Databases(given)
        yield databases
        databases.close()
        return
    with PostgresqlServer() as server:
        yield Databases(server.socket_url())


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    """A database of the test's own, with the schema and nothing in it."""
    with postgresql_databases.with_schema() as url:
        yield url


@pytest.fixture
def empty_postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    """A database of the test's own, without schema."""
    with postgresql_databases.empty() as url:
        yield url
