"""A server for all tests of ``reattach runs``, and runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.runs_of_a_server import Runs


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


@pytest.fixture
def runs(server: ServerProcess) -> Iterator[Runs]:
    """A new agent, and runs of it; those that are still active are cancelled at the end."""
    with httpx2.Client(base_url=server.url) as http:
        runs = Runs(http)
        yield runs
        runs.cancel_all()
