"""The package of the JavaScript client: its tests in Node, its size, and what it brings along."""

from __future__ import annotations

import gzip
import json
import subprocess

import pytest

from tests.support.javascript_client import DIRECTORY, PACKAGE, require_client

MOST_BYTES = 5 * 1024
BOUND_SECONDS = 60


@pytest.mark.parametrize("name", sorted(path.name for path in DIRECTORY.glob("*.test.mjs")))
def test_a_module_of_tests_passes_in_node(name: str) -> None:
    ran = subprocess.run(
        [require_client(), name],
        cwd=DIRECTORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_SECONDS,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "\n# pass" in ran.stdout


def test_all_of_it_is_smaller_than_5_kb_minified_and_compressed() -> None:
    require_client()
    size = len(gzip.compress((PACKAGE / "dist/index.js").read_bytes(), mtime=0))
    assert size / MOST_BYTES < 1, f"{size} bytes"


def test_it_needs_no_other_package() -> None:
    package = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    assert "dependencies" not in package
    assert "peerDependencies" not in package
