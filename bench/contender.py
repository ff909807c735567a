"""What is measured: servers that can be started, and asked for runs, by one interface."""

import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, Protocol, TypeVar

from bench.load import START_SECONDS, Request, Spoiled
from bench.machine import Cores, children_on, favour

Work = Literal["replay", "replay from a cursor", "live", "idle", "storm"]

READING: Final[frozenset[Work]] = frozenset(["replay", "replay from a cursor", "live"])
"""What whoever keeps a stream can do: give it from its start, from within, and as it grows."""

ENDINGS_PER_SECOND = 200

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Stream:
    """A run, as its readers ask for it."""

    resume: Request
    """From a cursor."""
    last: int = 0
    """The number of its last event; 0: it is not known."""
    begin: Request | None = None
    """What begins it, and streams it from its start; None: it has begun."""
    known: Mapping[int, Request] = field(default_factory=dict)
    """By cursor, where a request can not say a number."""

    def at(self, cursor: int) -> Request:
        """What asks for the events after ``cursor``."""
        return self.known.get(cursor, self.resume)


@dataclass(frozen=True, slots=True)
class Pace:
    """Runs that wait until a gate opens, and then yield evenly, each at a moment of its own."""

    runs: int
    events: int
    per_second: float
    gate: Path

    def phase_ns(self, run: int) -> int:
        return int(run * 1e9 / self.per_second / self.runs)

    def pause_ns(self, run: int) -> int:
        """After its last event, before it ends: no server has to end all of them at once."""
        return int(run * 1e9 / ENDINGS_PER_SECOND)


class Server(ABC):
    """A running server. ``pids`` are its processes, the stores beside it not among them."""

    flags: frozenset[str] = frozenset({"terminal"})
    """Of the groups that read its ended runs."""

    @property
    def live_flags(self) -> frozenset[str]:
        """Of those that read its live ones."""
        return self.flags

    def __init__(self, port: int, pids: Sequence[int]) -> None:
        self.port = port
        self.pids = tuple(pids)

    @abstractmethod
    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        """Ended runs of that many events and their terminal groups."""

    @abstractmethod
    def paced(self, pace: Pace) -> list[Stream]:
        """Runs that are begun, or that their first reader begins."""

    def silent(self, runs: int) -> list[Stream]:
        """Runs that have begun and say nothing."""
        raise NotImplementedError


class Contender(ABC):
    """One of those that are compared."""

    name: str
    about: str
    """In a sentence."""
    works: frozenset[Work]
    most_runs = 1_000_000
    """That are live at the same time; more of them would need too much beside the server."""

    def missing(self) -> str:
        """Why it can not be measured here; empty: it can."""
        return ""

    @abstractmethod
    def serving(self, directory: Path, cores: Cores) -> AbstractContextManager[Server]:
        """A fresh server that keeps what it has in ``directory``, on its core."""


Served_co = TypeVar("Served_co", bound=Server, covariant=True)


class Serving(Protocol[Served_co]):
    """A contender whose servers are known more closely."""

    def serving(self, directory: Path, cores: Cores) -> AbstractContextManager[Served_co]: ...


@contextmanager
def fresh(contender: Serving[Served_co], cores: Cores) -> Iterator[Served_co]:
    """A server that nothing was kept in before, and nothing is afterwards."""
    with (
        TemporaryDirectory(prefix="bench-data-") as directory,
        contender.serving(Path(directory), cores) as server,
    ):
        yield server


@contextmanager
def program(
    command: Sequence[str],
    cores: Cores,
    environment: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> Iterator[tuple[int, int]]:
    """A program that prints its URL once it serves; its port and process id."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REATTACH_")}
    with children_on(cores.server):
        process = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=kept | dict(environment or {}),
            start_new_session=True,  # A scheduling group of its own, which ``favour`` raises.
        )
    try:
        favour(process.pid)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise Spoiled(f"{' '.join(command[-2:])} did not start")
        yield int(url.rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.communicate()


def python(module: str, *arguments: str, checkout: Path = ROOT) -> list[str]:
    """The command that runs a module; another checkout has its own Python, if it has one."""
    own = checkout / ".venv" / "bin" / "python"
    interpreter = str(own) if checkout != ROOT and own.exists() else sys.executable
    return [interpreter, "-m", module, *arguments]


def asked(port: int, request: Request, *, whole: bool = True) -> bytes:
    """The response to a request, or only its head; raises Spoiled unless it is a success."""
    with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
        connection.sendall(request.data)
        received = b""
        while whole or b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            received += piece
            if not piece or (whole and _is_whole(received)):
                break
    if received[9:10] != b"2":
        raise Spoiled(f"{request.data[:60]!r}: {received[:300]!r}")
    return received.partition(b"\r\n\r\n")[2]


def _is_whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
        if line.startswith(b"transfer-encoding:"):
            return body.endswith(b"0\r\n\r\n")
    return False


def wait_until(at_ns: int) -> None:
    """Sleep until that time of the monotonic clock."""
    while (left_ns := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
