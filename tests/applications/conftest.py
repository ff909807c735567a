"""A real server and real programs, with a relay between them that breaks connections."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.applications.wire import Wire
from tests.clients.conftest import scripted_server
from tests.support.threads import raw_client


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for all tests. Each test creates its own conversations."""
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="package")
def raw(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of the server that bypasses the relay."""
    with raw_client(server.url) as raw:
        yield raw


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    """The test's relay to the server. All planned faults must have happened at the end."""
    with Wire(server.address) as wire:
        yield wire
        assert wire.planned == []
