"""Every text that says how to install Reattach gives a command that works."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

from reattach.extras import SOURCE, Extra, install_command, install_hint

ROOT = Path(__file__).parents[2]
PLACES = {"docs/install.md", "src/reattach/extras.py"}
"""The places to change at the first release."""

INSTALLS = re.compile(
    r"(?:pip|uv|pipx|uvx|poetry)\b[^\n`]{0,40}?[\s'\"](?:reattach|\.)\[[a-z,]+\]"
    r"|(?:install|add)\s+['\"`]{0,2}reattach\b"
    r"|``?reattach\[[a-z,]+\]"
)


def texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    ).stdout
    return {
        name: (ROOT / name).read_text("utf-8")
        for name in listed.split("\0")
        if name.endswith((".md", ".py", ".toml", ".txt", ".example", ".yaml"))
        and not name.startswith(("tests/", "CHANGELOG"))
        and (ROOT / name).is_file()
    }


def test_only_one_page_and_one_module_say_how_reattach_is_installed() -> None:
    """E2: no text names a package index that lacks Reattach."""
    found = {name for name, text in texts().items() if INSTALLS.search(text)}

    assert found - PLACES == set()


def test_the_page_names_the_commands_of_this_version() -> None:
    """E2: the page and the messages of the server agree."""
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    commands = re.findall(r"^pip install (?!\"\$)(.*)$", page, re.MULTILINE)

    assert commands == [install_command("cluster", "providers").removeprefix("pip install ")]
    assert f"pip install '{SOURCE}'" in page
    assert install_command("mcp") in install_hint("mcp")


def test_every_extra_is_on_the_page_and_can_be_named() -> None:
    """E2: every extra that a text names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "install.md").read_text("utf-8")

    assert set(get_args(Extra)) == set(project["optional-dependencies"])
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(get_args(Extra))


def test_the_install_command_finds_reattach_and_its_extras_in_a_clone() -> None:
    """E2: the command works in a clone."""
    arguments = install_command(*get_args(Extra)).removeprefix("pip install ").strip("'")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"),
            *("--no-build-isolation", "--no-deps", arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "Would install reattach-" in ran.stdout
    assert "does not provide the extra" not in ran.stderr
