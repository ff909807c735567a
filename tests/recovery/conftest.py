from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from reattach.records.runs.created import AdmittedContext
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay
from tests.support.stores import Stores, stores_in


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """Capture log lines: printing a traceback would read files in the event loop."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores_in(tmp_path) as stores:
        yield stores


@pytest.fixture
def relay(redis: RedisServer) -> Iterator[Relay]:
    """A relay in front of ``redis``."""
    with Relay(redis.socket_path) as relay:
        yield relay


@pytest.fixture
def contexts_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs begin as if every context were too long to be read with their admission."""
    monkeypatch.setattr(AdmittedContext, "read", lambda *_: ())
