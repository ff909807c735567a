"""Commands and servers start quickly, because they import only what they need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

BOUND_SECONDS = 60.0

SERVER = frozenset({"fastapi", "starlette", "uvloop"})
STORES = frozenset({"sqlalchemy", "sqlite3"})
NEVER = frozenset(
    {"alembic", "anthropic", "mcp", "openai", "psycopg", "pydantic_ai", "redis", "uvicorn"}
)
"""Parts that a plain start needs in no command."""

UNUSED = frozenset(
    {
        "click",
        "httpx2",
        "multiprocessing",
        "pydantic.v1",
        "rich.pretty",
        "sqlalchemy.dialects.postgresql",
        "typer",
        "xml",
    }
)
"""Parts that a server on SQLite does not need to answer requests for its health."""

IMPORTED = r"^import time: +\d+ \| +\d+ \| +([\w.]+)"


def imported(*arguments: str) -> set[str]:
    """Return the top-level names of all modules that Python imports until it ends."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    found = re.findall(IMPORTED, ran.stderr, re.MULTILINE)
    return {name.partition(".")[0] for name in found}


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


def test_a_server_that_has_answered_has_imported_only_what_it_needed(tmp_path: Path) -> None:
    records = tmp_path / "data"
    imported("-m", "reattach", "db", "upgrade", "--data-dir", str(records))
    command = ["-X", "importtime", "-m", "reattach", "serve", "--port", "0"]
    with (
        (tmp_path / "imports").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, *command, "--data-dir", str(records)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            with urlopen(f"{url}/v1/health/", timeout=BOUND_SECONDS) as response:
                assert response.status == 200
        finally:
            server.terminate()
            server.wait(BOUND_SECONDS)
    found = re.findall(IMPORTED, (tmp_path / "imports").read_text(), re.MULTILINE)
    names = {*found, *(name.partition(".")[0] for name in found)}

    assert names >= SERVER | STORES
    assert names & (NEVER | UNUSED) == set()


def test_models_that_describe_an_api_are_built_when_it_is_described() -> None:
    program = (
        "from reattach.server.imports import import_fastapi, import_structlog;"
        "import_structlog(); import_fastapi();"
        "from fastapi.openapi.models import OpenAPI; import pydantic, sys;"
        "assert not OpenAPI.__pydantic_complete__;"
        "OpenAPI(openapi='3.1.0', info={'title': 'a', 'version': '1'}, paths={});"
        "assert OpenAPI.__pydantic_complete__;"
        "class_ = type('Later', (pydantic.BaseModel,), {'__annotations__': {'a': int}});"
        "assert class_.__pydantic_complete__;"
        "import rich"
    )

    assert "rich" in imported("-c", program)
