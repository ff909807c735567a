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


def imported(*command: str) -> set[str]:
    """Return the top-level names of all modules that the command imports until it ends."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "reattach", *command],
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    return names_in(ran.stderr)


def names_in(report: str) -> set[str]:
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", report, re.MULTILINE))


@pytest.mark.parametrize("command", [["--version"], ["--help"], ["serve", "--help"]])
def test_a_command_that_opens_nothing_imports_no_part_of_a_server(command: list[str]) -> None:
    assert imported(*command) & (SERVER | STORES | NEVER | {"httpx2", "structlog"}) == set()


@pytest.mark.parametrize("command", [["keys", "list"], ["db", "upgrade"], ["callbacks", "secret"]])
def test_a_command_on_the_records_imports_no_server(tmp_path: Path, command: list[str]) -> None:
    names = imported(*command, "--data-dir", str(tmp_path))

    assert "sqlalchemy" in names
    assert names & (SERVER | NEVER | {"httpx2"}) == set()
