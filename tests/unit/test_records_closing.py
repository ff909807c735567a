"""Closing the records while transactions go on: nothing stays open, and nothing begins any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest
from aiosqlite import Connection
from sqlalchemy import text

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StoreUnavailableError
from reattach.records.database.database import Database
from reattach.records.records import Records

WAIT_SECONDS = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
def open_connections(monkeypatch: pytest.MonkeyPatch) -> set[Connection]:
    """The connections that were made and not closed."""
    open_connections: set[Connection] = set()
    connect, close = Connection._connect, Connection.close

    async def connect_counted(self: Connection) -> Connection:
        connected = await connect(self)
        open_connections.add(self)
        return connected

    async def close_counted(self: Connection) -> None:
        await close(self)
        open_connections.discard(self)

    monkeypatch.setattr(Connection, "_connect", connect_counted)
    monkeypatch.setattr(Connection, "close", close_counted)
    return open_connections


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_closing_waits_for_the_transactions_that_go_on_and_leaves_no_connection_open(
    path: Path, kind: Literal["read", "write"], open_connections: set[Connection]
) -> None:
    database = await Database.open(f"sqlite:///{path}")
    transaction = database.read if kind == "read" else database.write
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def use() -> None:
        async with transaction() as connection:
            begun.set()
            await may_end.wait()
            await connection.execute(text("SELECT 1"))

    async with asyncio.timeout(WAIT_SECONDS):
        uses = [asyncio.create_task(use())]
        await begun.wait()
        closing = asyncio.create_task(database.aclose())
        await asyncio.sleep(0)  # It has begun.
        uses.append(asyncio.create_task(use()))
        may_end.set()
        await closing
        first, second = await asyncio.gather(*uses, return_exceptions=True)
        assert first is None
        assert isinstance(second, StoreUnavailableError)
        with pytest.raises(StoreUnavailableError):
            await use()
        await database.aclose()
    assert open_connections == set()


async def test_closing_at_any_moment_of_a_cancelled_transaction_leaves_no_connection_open(
    path: Path, open_connections: set[Connection]
) -> None:
    for steps in range(16):
        database = await Database.open(f"sqlite:///{path}")
        reading = asyncio.create_task(Records(database, SystemClock()).keys.any())
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            await database.aclose()
            await asyncio.wait([reading])
        assert open_connections == set()
