from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reattach.records.records import Records
from tests.conformance.records.samples import HandClock, World, a_world


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without records; the parameter names its kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def records(url: str, clock: HandClock) -> AsyncIterator[Records]:
    records = await Records.open(url, clock=clock)
    yield records
    await records.aclose()


@pytest.fixture
async def other_process(url: str, clock: HandClock, records: Records) -> AsyncIterator[Records]:
    """What another process has open on the same database."""
    other = await Records.open(url, clock=clock)
    yield other
    await other.aclose()


@pytest.fixture
async def world(records: Records) -> World:
    return await a_world(records)
