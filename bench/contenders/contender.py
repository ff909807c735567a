"""The interface of the servers under measurement: how they are started and asked for runs."""

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

from bench.measuring.load import START_SECONDS, Request, SpoiledError
from bench.measuring.machine import Cores, children_on, raise_priority

Work = Literal["replay", "replay from a cursor", "live", "idle", "storm"]

READING: Final[frozenset[Work]] = frozenset(["replay", "replay from a cursor", "live"])
"""Work of every server that stores a stream: replay from the start, replay from a cursor, live."""

ENDINGS_PER_SECOND = 500

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Stream:
    """The requests by which readers get a run."""

    resume: Request
    """Resumes from a cursor."""
    last: int = 0
    """The number of its last event, or 0 if unknown."""
    begin: Request | None = None
    """Starts the run and streams it from its start. None: it has started."""
    known: Mapping[int, Request] = field(default_factory=dict)
    """Requests by cursor, for servers whose cursors are not numbers."""

    def at(self, cursor: int) -> Request:
        """Return the request for the events after ``cursor``."""
        return self.known.get(cursor, self.resume)


@dataclass(frozen=True, slots=True)
class Pace:
    """Runs that wait for a gate and then yield at an even rate, each with its own phase."""

    runs: int
    events: int
    per_second: float
    gate: Path

    def phase_ns(self, run: int) -> int:
        return int(run * 1e9 / self.per_second / self.runs)

    def pause_ns(self, run: int) -> int:
        """Pause between the last event and the end, so that runs do not all end at once."""
        return int(run * 1e9 / ENDINGS_PER_SECOND)

    def text(self, run: int) -> str:
        """Return the message by which a run of ``bench.server`` gets its pace."""
        return (
            f"{self.events} {self.per_second} {self.phase_ns(run)} {self.pause_ns(run)} {self.gate}"
        )


class Server(ABC):
    """A running server. ``pids`` are its processes, without those of its stores."""

    flags: frozenset[str] = frozenset({"terminal"})
    """Flags of the load client for groups that read ended runs."""

    @property
    def live_flags(self) -> frozenset[str]:
        """Flags of the load client for groups that read live runs."""
        return self.flags

    def __init__(self, port: int, pids: Sequence[int]) -> None:
        self.port = port
        self.pids = tuple(pids)

    @abstractmethod
    def ended(self, events: int, runs: int = 1) -> list[Stream]:
        """Create ended runs of this many events and a terminal group."""

    @abstractmethod
    def paced(self, pace: Pace) -> list[Stream]:
        """Start runs at this pace, or return requests by which the first reader starts them."""

    def silent(self, runs: int) -> list[Stream]:
        """Start runs that yield nothing."""
        raise NotImplementedError


class Contender(ABC):
    """A server that takes part in the comparison."""

    name: str
    about: str
    """A description in one sentence."""
    works: frozenset[Work]
    most_runs = 1_000_000
    """Most live runs at a time. More would load the machine beside the server."""

    def missing(self) -> str:
        """Return why it is not available here, or an empty text if it is."""
        return ""

    @abstractmethod
    def serving(self, directory: Path, cores: Cores) -> AbstractContextManager[Server]:
        """Start a new server on its core, with its data in ``directory``."""


Served_co = TypeVar("Served_co", bound=Server, covariant=True)


class Serving(Protocol[Served_co]):
    """A contender whose servers have a more specific type."""

    def serving(self, directory: Path, cores: Cores) -> AbstractContextManager[Served_co]: ...


@contextmanager
def fresh(contender: Serving[Served_co], cores: Cores) -> Iterator[Served_co]:
    """Start a server with an empty directory, and remove that on exit."""
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
    """Start a program that prints its URL when it is ready, and yield its port and process id."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REATTACH_")}
    with children_on(cores.server):
        process = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=kept | dict(environment or {}),
            start_new_session=True,  # ``raise_priority`` needs a scheduling group of its own.
        )
    try:
        raise_priority(process.pid)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SpoiledError(
                f"{' '.join(command[-2:])} did not print a URL; see its output above"
            )
        yield int(url.rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.communicate()


def python(module: str, *arguments: str, checkout: Path = ROOT) -> list[str]:
    """Return the command that runs a module, with the Python of the checkout's ``.venv`` if any."""
    own = checkout / ".venv" / "bin" / "python"
    interpreter = str(own) if checkout != ROOT and own.exists() else sys.executable
    return [interpreter, "-m", module, *arguments]


def asked(port: int, request: Request, *, whole: bool = True) -> bytes:
    """Send a request and return the response's body. Raises SpoiledError unless it succeeds."""
    with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
        connection.sendall(request.data)
        received = b""
        while whole or b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            received += piece
            if not piece or (whole and _is_whole(received)):
                break
    if received[9:10] != b"2":
        raise SpoiledError(f"{request.data[:60]!r}: {received[:300]!r}")
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
    """Sleep until a time of the monotonic clock."""
    while (left_ns := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
