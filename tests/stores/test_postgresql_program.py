"""The PostgreSQL of tests and demonstrations runs from any folder, and says why it does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest

from reattach.testing.programs import postgresql
from reattach.testing.programs.postgresql import PostgresqlServer
from tests.support.postgresql_server import INITIALISE

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def initdb_makes_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresqlServer, "_initialise", INITIALISE)


def test_it_runs_from_a_folder_that_only_its_owner_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E12: a clone below such a folder, run as root, has a server too."""
    programs = postgresql._installed()
    package = programs.parents[1]
    closed = tmp_path / "closed"
    for folder in (programs.parent, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            target = closed / folder.relative_to(package.parent)
            shutil.copytree(folder, target, symlinks=True, copy_function=_linked)
    closed.chmod(0o700)
    there = closed / programs.relative_to(package.parent)
    monkeypatch.setattr(postgresql, "_installed", lambda: there)

    with PostgresqlServer() as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def test_a_program_that_fails_shows_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E12: the output of `initdb` is in the error."""
    programs = tmp_path / "installation" / "bin"
    programs.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        program = programs / name
        program.write_text("#!/bin/sh\necho there is no room\nexit 3\n")
        program.chmod(0o755)
    monkeypatch.setattr(postgresql, "_installed", lambda: programs)

    with pytest.raises(RuntimeError, match="initdb failed with status 3:\nthere is no room"):
        PostgresqlServer()
