"""The commands of the README do what it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.forking import run_program

ROOT = Path(__file__).parents[2]

MAX_DEMO_BYTES = 350 * 1024 * 1024
VENV_BYTES = 40 * 1024 * 1024
"""pip and setuptools in a fresh environment, the repository, and what Python compiles."""

_LOADED = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    runpy.run_path(name, run_name="loaded") if name.endswith(".py") else __import__(name)
"""
"""A program that imports modules as if some packages were not installed."""


@pytest.mark.timeout(300)
@pytest.mark.promise("P4", "P9", "P19")
@pytest.mark.parametrize(
    "options", [[], ["--cluster", "--scripted"]], ids=["one server", "two servers"]
)
def test_the_demo_reports_that_nothing_was_lost_or_doubled(options: list[str]) -> None:
    ran = run_program(ROOT / "scripts" / "demo.py", *options, cwd=ROOT, timeout_seconds=280)

    assert ran.returncode == 0, ran.stdout
    assert "the answer went on after a gap" in ran.stdout
    assert ran.stdout.splitlines()[-1].endswith("Nothing was lost and nothing was doubled.")


def locked(name: str) -> set[str]:
    """Return the distributions that a lock installs, by their normalized names."""
    text = (ROOT / "requirements" / name).read_text("utf-8")
    return set(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", text, re.MULTILINE))


def files_of(name: str) -> Iterator[Path]:
    for file in metadata.distribution(name).files or []:
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            yield path


def test_the_demo_installs_at_most_350_megabytes() -> None:
    """E3: the demo does not install the test kit."""
    script = (ROOT / "scripts" / "demo").read_text("utf-8")
    assert 'profile=run\n[[ " $* " != *" --cluster "* ]] || profile=cluster' in script
    present = {dist.metadata["Name"].lower().replace("_", "-") for dist in metadata.distributions()}

    installed = sum(
        path.stat().st_size for name in locked("demo.txt") & present for path in files_of(name)
    )

    assert installed + VENV_BYTES <= MAX_DEMO_BYTES
    assert not locked("demo.txt") & {"pytest", "mypy", "uv", "hypothesis", "pydantic-ai-slim"}


@pytest.mark.parametrize(
    ("lock", "modules"),
    [
        ("demo.txt", ["scripts/demo.py", "reattach.http.app", "reattach.cli", "xllamacpp"]),
        ("demo-cluster.txt", ["scripts/demo.py", "psycopg", "redis", "reattach.log.redis.log"]),
    ],
)
def test_a_profile_installs_everything_that_its_command_imports(
    lock: str, modules: list[str]
) -> None:
    """E3: small profiles lack nothing that the demo and its server import."""
    there = locked(lock) | {"reattach", "pip", "setuptools"}
    absent = {
        package
        for package, owners in metadata.packages_distributions().items()
        if not there & {owner.lower().replace("_", "-") for owner in owners}
    }
    assert "pytest" in absent

    ran = subprocess.run(
        [sys.executable, "-c", _LOADED.format(modules=modules, absent=absent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr


def test_an_unknown_profile_is_refused_with_a_list_of_profiles() -> None:
    """E3: scripts/setup names its profiles."""
    ran = subprocess.run(
        ["scripts/setup", "everything"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ran.returncode == 1
    assert "choose run, serve, cluster or dev" in ran.stderr


def test_the_readme_begins_with_the_commands_of_the_demo_the_tests_and_the_server() -> None:
    """E16: README has one command for the main job and one for the tests."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("## Two commands\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^(scripts/\w+)", section, re.MULTILINE)

    assert commands == ["scripts/demo", "scripts/test", "scripts/serve"]
