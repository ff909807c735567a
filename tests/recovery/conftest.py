from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay
from tests.support.in_process import Heart, heart_in


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """What the server logs, caught: to show a traceback would read files in the event loop."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
async def heart(tmp_path: Path) -> AsyncIterator[Heart]:
    async with heart_in(tmp_path) as heart:
        yield heart


@pytest.fixture
def relay(redis: RedisServer) -> Iterator[Relay]:
    """Before ``redis``."""
    with Relay(redis.socket_path) as relay:
        yield relay
