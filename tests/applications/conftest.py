"""A real server, real programs, and between them a wire that breaks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.applications.wire import Wire
from tests.clients.conftest import scripted_server
from tests.support.threads import raw_client


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests; each makes conversations of its own."""
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="session")
def raw(server: ServerProcess) -> Iterator[httpx.Client]:
    """To look at the server without an application, and around the wire."""
    with raw_client(server.url) as raw:
        yield raw


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    """The test's own way to the server. What it planned has to have happened."""
    with Wire(server.address) as wire:
        yield wire
        assert wire.planned == []
