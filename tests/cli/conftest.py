from __future__ import annotations

from collections.abc import Iterator

import pytest

from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.redis import RedisServer


@pytest.fixture(scope="package")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that asks for passwords, and that tests may set up as they need it."""
    with PostgresqlServer() as server:
        yield server


@pytest.fixture(scope="package")
def redis_server() -> Iterator[RedisServer]:
    """A server that tests may set up as they need it, with nothing special at first."""
    with RedisServer("--appendonly", "yes", tcp=True) as server:
        yield server
