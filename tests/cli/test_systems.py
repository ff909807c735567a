"""E15: on a system that cannot run the server, one sentence says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

BOUND_SECONDS = 60.0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.platform = 'win32'; import reattach.__main__", "reattach: The server"),
        (
            "import sys; sys.modules['fcntl'] = None; import reattach.server.datadir",
            "ImportError: The server",
        ),
    ],
)
def test_a_system_without_file_locks_is_referred_to_wsl(code: str, message: str) -> None:
    """E15."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
    )
    last = ran.stderr.strip().splitlines()[-1]
    assert ran.returncode == 1
    assert last.startswith(message)
    assert "inside WSL" in last


def test_the_client_needs_nothing_that_windows_lacks() -> None:
    """E15."""
    code = """
import sys, time
import asyncio, httpx2  # They import what the system that runs the test needs.
sys.modules.update(fcntl=None, termios=None, uvloop=None, resource=None)
sys.platform = "win32"
for name in [name for name in dir(time) if name.startswith(("CLOCK_", "clock_"))]:
    delattr(time, name)
from reattach.client import GaveUpError, SyncClient
try:
    next(SyncClient("http://127.0.0.1:1", give_up_seconds=0.01).follow("default"))
except GaveUpError:
    print("gave up")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=BOUND_SECONDS, capture_output=True
    )
    assert ran.stdout == b"gave up\n"
