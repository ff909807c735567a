"""Commands and servers start quickly, because they import only what they need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BOUND_SECONDS = 60.0

SERVER = frozenset({"fastapi", "starlette", "uvicorn", "uvloop"})
STORES = frozenset({"sqlalchemy", "sqlite3"})
NEVER = frozenset({"alembic", "anthropic", "mcp", "openai", "psycopg", "pydantic_ai", "redis"})
"""Parts that a plain start needs in no command."""


def imported(*arguments: str) -> set[str]:
    """Return the top-level names of all modules that Python imports until it ends."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", ran.stderr, re.MULTILINE))


@pytest.mark.parametrize("command", [["--version"], ["serve", "--help"]])
def test_a_command_that_opens_nothing_imports_no_part_of_a_server(command: list[str]) -> None:
    assert (
        imported("-m", "reattach", *command) & (SERVER | STORES | NEVER | {"httpx2", "structlog"})
        == set()
    )


@pytest.mark.parametrize("command", [["keys", "list"], ["db", "upgrade"]])
def test_a_command_on_the_records_imports_no_server(tmp_path: Path, command: list[str]) -> None:
    names = imported("-m", "reattach", *command, "--data-dir", str(tmp_path))

    assert "sqlalchemy" in names
    assert names & (SERVER | NEVER | {"httpx2"}) == set()


def test_a_supervisor_imports_no_server() -> None:
    names = imported("-c", "import reattach.server.supervisor")

    assert "structlog" in names
    assert names & ((SERVER | STORES | NEVER | {"httpx2"}) - {"uvloop"}) == set()


def test_a_server_imports_only_the_parts_of_its_settings() -> None:
    names = imported("-c", "import reattach.server.process")

    assert SERVER - {"uvloop"} <= names
    assert names & NEVER == set()
