"""The commands that the README names do what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.promise("P4", "P7", "P9")
@pytest.mark.parametrize(
    "options", [[], ["--cluster", "--scripted"]], ids=["one server", "two servers"]
)
def test_the_demo_loses_and_doubles_nothing_and_says_so(options: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "scripts/demo.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "the stream's end" in ran.stdout
    assert ran.stdout.splitlines()[-1].endswith("Nothing was lost and nothing was doubled.")
