"""The committed page is the one that its sources give."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.missing import skip_or_fail

PAGE = Path(__file__).parents[2] / "page"


def test_building_the_page_again_gives_the_committed_bytes() -> None:
    node = shutil.which("node")
    if node is None or not (PAGE / "node_modules/esbuild").is_dir():
        skip_or_fail("The page cannot be built: install Node 20 or newer and run scripts/setup")
    command = [node, str(PAGE / "build.mjs"), "--check"]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
