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
    code = "import sys; sys.modules.update(fcntl=None, termios=None, uvloop=None, resource=None); "
    subprocess.run(
        [sys.executable, "-c", code + "import reattach.client"], check=True, timeout=BOUND_SECONDS
    )
