"""Closing the records during transactions: no connection stays open, and none begins afterwards."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import Connection, text

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StoreUnavailableError
from reattach.records.database.database import Database
from reattach.records.records import Records

WAIT_SECONDS = 30.0


def assert_all_closed(path: Path) -> None:
    """SQLite removes the WAL when the last connection to a file is closed."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_closing_waits_for_transactions_under_way_and_leaves_no_connection_open(
    path: Path, kind: Literal["read", "write"]
) -> None:
    database = await Database.open(f"sqlite:///{path}")
    transaction = database.in_read if kind == "read" else database.in_write
    begun, may_end = threading.Event(), threading.Event()

    def use(connection: Connection) -> None:
        begun.set()
        assert may_end.wait(WAIT_SECONDS)
        connection.execute(text("SELECT 1"))

    async with asyncio.timeout(WAIT_SECONDS):
        uses = [asyncio.create_task(transaction(use))]
        await asyncio.to_thread(begun.wait)
        closing = asyncio.create_task(database.aclose())
        await asyncio.sleep(0)  # It has begun.
        uses.append(asyncio.create_task(transaction(use)))
        await asyncio.sleep(0)
        may_end.set()
        await closing
        first, second = await asyncio.gather(*uses, return_exceptions=True)
        assert first is None
        assert isinstance(second, StoreUnavailableError)
        with pytest.raises(StoreUnavailableError):
            await transaction(use)
        await database.aclose()
    assert_all_closed(path)


async def test_a_database_that_waits_for_a_read_refuses_writes(path: Path) -> None:
    database = await Database.open(f"sqlite:///{path}")
    begun, may_end = threading.Event(), threading.Event()

    def read(connection: Connection) -> None:
        begun.set()
        assert may_end.wait(WAIT_SECONDS)
        connection.execute(text("SELECT 1"))

    def write(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))

    async with asyncio.timeout(WAIT_SECONDS):
        reading = asyncio.create_task(database.in_read(read))
        await asyncio.to_thread(begun.wait)
        closing = asyncio.create_task(database.aclose())
        await asyncio.sleep(0)  # It has begun.
        with pytest.raises(StoreUnavailableError):
            await database.in_write(write)
        may_end.set()
        await asyncio.gather(reading, closing)


async def test_closing_at_any_moment_of_a_cancelled_transaction_leaves_no_connection_open(
    path: Path,
) -> None:
    for ticks in range(16):
        database = await Database.open(f"sqlite:///{path}")
        reading = asyncio.create_task(Records(database, SystemClock()).keys.list(None))
        for _ in range(ticks):
            await asyncio.sleep(0)
        reading.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            await database.aclose()
            await asyncio.wait([reading])
        assert_all_closed(path)
