"""The forks that tests use as servers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.forking import IMPORTED, PRINT_IMPORTS
from tests.support.redis_server import shared_url

pytestmark = pytest.mark.slow

END_SECONDS = 20


def imported_by(server: ServerProcess) -> set[str]:
    """Return the modules, other than Python's own, that a stopped server has imported itself."""
    deadline = time.monotonic() + END_SECONDS
    while IMPORTED not in server.output:
        assert time.monotonic() < deadline, server.output
        time.sleep(0.01)
    imported = server.output.rpartition(IMPORTED)[2].split()
    return {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}


def test_a_forked_server_imports_nothing_itself(tmp_path: Path) -> None:
    environment = {PRINT_IMPORTS: "1"}
    with ServerProcess(tmp_path, arguments=["--scripted"], environment=environment) as server:
        assert server.stop() == 0
        assert imported_by(server) == set()


def test_a_forked_server_on_shared_stores_imports_nothing_itself(
    tmp_path: Path, postgresql_url: str
) -> None:
    stores = {"REATTACH_DATABASE_URL": postgresql_url, "REATTACH_LOG_URL": shared_url()}
    environment = {PRINT_IMPORTS: "1", **stores}
    with ServerProcess(tmp_path, arguments=["--scripted"], environment=environment) as server:
        assert server.stop() == 0
        assert imported_by(server) == set()
