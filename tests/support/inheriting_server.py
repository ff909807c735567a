"""Servers whose listening socket this process keeps open while they die and restart."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from reattach.testing.programs.program import Program
from reattach.testing.programs.server import ServerProcess

LAUNCHER = """
import os, sys
fd, *command = sys.argv[1:]
if int(fd) != 3:
    os.dup2(int(fd), 3)
    os.close(int(fd))
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
os.execv(sys.executable, [sys.executable, *command])
"""
"""Passes a socket as systemd does: the variables are set between fork and exec."""


class InheritingServer(ServerProcess):
    """A server that gets ``listener`` from this process, by its descriptor or as from systemd."""

    def __init__(
        self,
        data_dir: Path,
        listener: socket.socket,
        way: str = "flag",
        *,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._fd = str(listener.fileno())
        self.way = way
        super().__init__(data_dir, arguments=["--scripted"], environment=environment)
        self._options["pass_fds"] = [listener.fileno()]

    @override
    def _command(self) -> Sequence[str | Path]:
        command = super()._command()
        if self.way == "flag":
            return command
        return [sys.executable, "-c", LAUNCHER, self._fd, *command[1:]]

    @override
    def _serve(self) -> list[str]:
        return [*super()._serve(), *(("--fd", self._fd) if self.way == "flag" else ())]

    @override
    def _spawn(self) -> subprocess.Popen[str]:
        if self.way == "flag":
            return super()._spawn()
        return Program._spawn(self)  # A fork cannot be passed what systemd's variables name.


def wait_for_client(listener: socket.socket, timeout_seconds: float) -> None:
    """Return when a client waits in the socket. Raises TimeoutError."""
    if not select.select([listener], [], [], timeout_seconds)[0]:
        raise TimeoutError(f"No client connected within {timeout_seconds:g} s.")
