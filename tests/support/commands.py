"""The command line, with nothing in its environment but what is given."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from reattach.cli import main
from reattach.engine.providers import VARIABLES as PROVIDER_VARIABLES

BOUND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    out: str
    err: str


def reattach(*arguments: str, **variables: str) -> Ended:
    """Run ``reattach`` until it ends, as a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "reattach", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        env=_environment(variables),
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


def reattach_here(*arguments: str, **variables: str) -> Ended:
    """The same in this process, which is faster; its log lines go nowhere."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        patch.object(sys, "argv", ["reattach", *arguments]),
        patch.dict(os.environ, _environment(variables), clear=True),
        patch("reattach.observe.configure_logging"),
        patch("reattach.server.assembly.logger"),
        patch("reattach.server.announcing.logger"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


def _environment(variables: dict[str, str]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REATTACH_") and name not in PROVIDER_VARIABLES
    }
    return inherited | variables
