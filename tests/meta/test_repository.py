from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import reattach

ROOT = Path(__file__).parents[2]
PYTHON_LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
NPM_LOCKS = {
    "tests/clients/typescript": ("@letta-ai/letta-client", "1.12.1"),
    "tests/applications/vercel": ("@letta-ai/vercel-ai-sdk-provider", "1.4.0"),
    "tests/browser": ("@sparticuz/chromium", "147.0.0"),
    "tests/dialects/node": ("openai", "7.59.0"),
    "js": ("esbuild", "0.28.2"),
    "page": ("preact", "11.2.0"),
}
COMMANDS = [
    ".ci/run",
    "scripts/bench",
    "scripts/check",
    "scripts/demo",
    "scripts/lock",
    "scripts/screenshots",
    "scripts/serve",
    "scripts/setup",
    "scripts/site",
    "scripts/test",
]

# Written so that this file does not hold what it looks for.
REGISTRY = re.compile(r"pypi[.]org|python[h]osted|npm[j]s")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root/|work/|farm)")
FILE_URL = re.compile(r"file:[/]/")
REQUIREMENT = re.compile(r"^[A-Za-z0-9][\w.\[\],-]*==\S+", re.MULTILINE)


def files_of_the_repository() -> list[Path]:
    """List the files that git knows, because others come and go while tests run."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files_of_the_repository()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_the_files_looked_at_are_the_files_of_the_repository() -> None:
    files = files_of_the_repository()
    assert Path(__file__) in files
    assert ROOT / "pyproject.toml" in files
    assert not [path for path in files if ".venv" in path.parts or "node_modules" in path.parts]


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(REGISTRY) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert lines_with(MACHINE_PATH) == []


def test_no_file_holds_a_file_url() -> None:
    assert lines_with(FILE_URL) == []


def test_no_tests_are_left_out() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = set(settings["tool"]["pytest"]["testpaths"])
    with_tests = {path.parent for path in files_of_the_repository() if path.match("test_*.py")}
    assert with_tests
    assert not [
        path for path in with_tests if not any(path.is_relative_to(ROOT / one) for one in named)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_executable_and_stops_at_its_first_error(name: str) -> None:
    command = ROOT / name
    assert os.access(command, os.X_OK)
    lines = command.read_text("utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("lock", PYTHON_LOCKS, ids=lambda lock: str(lock.name))
def test_a_python_lock_pins_every_package_by_hash_and_holds_no_address(lock: Path) -> None:
    text = lock.read_text("utf-8")
    assert "://" not in text
    entries = [
        entry
        for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " "))
        if not entry.lstrip().startswith("#")
    ]
    assert entries
    assert [entry for entry in entries if not REQUIREMENT.match(entry)] == []
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_there_are_locks_for_uv_builds_every_profile_running_and_applications() -> None:
    assert [lock.name for lock in PYTHON_LOCKS] == [
        *("applications.txt", "build.txt", "demo-cluster.txt", "demo.txt", "dev.txt"),
        *("run.txt", "serve.txt", "uv.txt"),
    ]


def pinned(name: str) -> set[str]:
    return set(REQUIREMENT.findall((ROOT / "requirements" / name).read_text("utf-8")))


@pytest.mark.parametrize("name", ["run.txt", "demo.txt", "demo-cluster.txt", "serve.txt"])
def test_a_server_runs_on_the_versions_that_the_tests_have_seen(name: str) -> None:
    assert pinned(name)
    assert pinned(name) <= pinned("dev.txt")


@pytest.mark.parametrize("directory", NPM_LOCKS)
def test_an_npm_lock_pins_every_package_by_hash_and_holds_no_address(directory: str) -> None:
    lock = json.loads((ROOT / directory / "package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    name, version = NPM_LOCKS[directory]
    assert packages[f"node_modules/{name}"]["version"] == version
    assert [name for name, entry in packages.items() if "integrity" not in entry] == []
    assert [name for name, entry in packages.items() if "resolved" in entry] == []


def test_uvicorn_is_not_imported() -> None:
    """The connection and the server around it are ours. uvicorn would import Click and more."""
    imported = set()
    for path in files_of_the_repository():
        if path.suffix == ".py" and path.is_relative_to(ROOT / "src"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module)
    assert {name for name in imported if name.partition(".")[0] == "uvicorn"} == set()


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert metadata.version("reattach") == reattach.__version__
