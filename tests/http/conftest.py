from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from letta_client import AsyncLetta

from tests.support.asgi_server import Server, api_described_once, serving, strict_sdk
from tests.support.live_server import LiveServer, listening


@pytest.fixture(scope="session", autouse=True)
def applications_share_their_description() -> Iterator[None]:
    with api_described_once():
        yield


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """Capture log lines: printing a traceback would read files in the event loop."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server for those tests of a file that neither need it empty nor leave it otherwise."""
    async with serving(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    """A server that listens, for all tests of a file."""
    async with listening(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
async def letta(live: LiveServer) -> AsyncIterator[AsyncLetta]:
    async with strict_sdk(live.url) as letta:
        yield letta
