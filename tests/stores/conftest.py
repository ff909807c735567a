"""The databases of records: SQLite at ``path``, unless ``records_url`` is another one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reattach.domain.clock import SystemClock
from reattach.records.database.database import Database
from reattach.records.records import Records


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
