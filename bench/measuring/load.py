"""The load client, a program in C that is compiled on first use and reads what it is asked to."""

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from bench.measuring.machine import children_on, raise_priority
from reattach.testing.closing import Closing

SOURCES = Path(__file__).parents[1] / "client"
CACHE = Path(__file__).parents[2] / ".bench"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
IN_URL = "=000000000000"
IN_JSON = 999999999999
"""Placeholders that the client replaces by the cursor."""
ADDRESSES = 16
"""Number of loopback addresses that it connects from."""
START_SECONDS = 60.0


class SpoiledError(Exception):
    """A measurement with an error, which gives no figure."""


def program() -> Path:
    """Compile the client if needed and return its path. Raises SystemExit without a compiler."""
    if sys.platform != "linux":
        raise SystemExit("bench: the load generator needs Linux (epoll).")
    sources = sorted(SOURCES.glob("*.c"))
    parts = [file.read_bytes() for file in (*sources, *SOURCES.glob("*.h"))]
    digest = hashlib.sha256(b"\0".join([*parts, *(flag.encode() for flag in FLAGS)])).hexdigest()
    made = CACHE / f"load-{digest[:16]}"
    if not made.exists():
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise SystemExit(
                "bench: the load generator is written in C, and there is no compiler `cc` here. "
                "Install one (on Debian and Ubuntu: apt install gcc libc6-dev), or name one in CC."
            )
        CACHE.mkdir(exist_ok=True)
        new = made.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, "-o", str(new), *map(str, sources)], check=True)
        new.rename(made)
    return made


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of a request and the offset of the cursor in them, or -1."""

    data: bytes
    cursor_at: int

    @classmethod
    def of(
        cls, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Self:
        """Build an HTTP/1.1 request. IN_URL in ``path`` or IN_JSON in ``body`` marks the cursor."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = {"host": "localhost", **(headers or {})}
        if body is not None:
            lines |= {"content-type": "application/json", "content-length": str(len(content))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        data = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content
        in_url = data.find(f"{IN_URL} ".encode())
        return cls(data, data.find(str(IN_JSON).encode()) if in_url < 0 else in_url + 1)


@dataclass(frozen=True, slots=True)
class Reader:
    """The requests of one connection."""

    first: Request
    resume: Request | None = None
    """Resumes from the cursor after a cut. None: the first request again."""
    after: int = 0
    last: int = 0
    """The number of the last event, or 0 if unknown."""
    start_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Readers with a common report. ``flags`` are defined at the head of the C program."""

    name: str
    mode: str
    readers: Sequence[Reader]
    flags: frozenset[str] = frozenset()


class Histogram(msgspec.Struct, frozen=True):
    """Quantiles in nanoseconds. Empty if there were no values."""

    count: int
    mean: float = 0.0
    p50: int = 0
    p90: int = 0
    p99: int = 0
    p999: int = 0
    max: int = 0


class GroupReport(msgspec.Struct, frozen=True):
    readers: int
    requests: int
    responses: int
    events: int
    pings: int
    bytes: int
    reconnects: int
    not_caught_up: int
    errors: int
    first_error: str
    lag: Histogram
    """Time from when an event was due to its last byte, for the events within ``measure``."""
    lag_of_yield: Histogram
    """Time from when the engine yielded it, which is the server's own share."""
    lag_in_storm: Histogram
    """Lag while readers of another group reconnected."""
    first_byte: Histogram
    """Time from the request, or from when it was due, to the first byte of the body."""
    whole: Histogram
    caught_up: Histogram
    """Time from the cut to the first event with a lag below a tenth of a second."""
    ping_gap: Histogram
    """Time from the bytes before it to a ping."""


class Report(msgspec.Struct, frozen=True):
    wall_ns: int
    cpu_seconds: float
    groups: Mapping[str, GroupReport]


@dataclass
class Load(Closing):
    """A running load client, which its context ends. A wait past its limit raises SpoiledError."""

    port: int
    groups: Sequence[Group]
    core: int
    host: str = "127.0.0.1"
    _lines: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue)
    _words: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="bench-load-")
        plan = Path(self._directory.name, "plan")
        plan.write_bytes(self._plan())
        client = program()
        with children_on(self.core):
            self._process = subprocess.Popen(
                [client, plan],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # ``raise_priority`` needs a scheduling group of its own.
            )
        self.pid = self._process.pid
        raise_priority(self.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def close(self) -> None:
        self._process.kill()
        self._reader.join()  # It reads the output, which ``communicate`` closes.
        self._process.communicate()
        self._directory.cleanup()

    def opened(self, seconds: float = START_SECONDS) -> float:
        """Wait until every reader has an answer, and return how long that took."""
        return float(self._event("open", seconds)["ns"]) / 1e9

    def caught_up(self, seconds: float) -> float:
        """Wait until all cut readers are live again, and return how long that took."""
        return float(self._event("caught_up", seconds)["ns"]) / 1e9

    def measure(self, from_ns: int, to_ns: int) -> None:
        self._tell(f"measure {from_ns} {to_ns}")

    def cut(self, group: str, at_ns: int) -> None:
        self._tell(f"cut {group} {at_ns}")

    def stop(self, at_ns: int) -> None:
        """End the loops and close the readers that are held open."""
        self._tell(f"stop {at_ns}")

    def done(self, seconds: float) -> Report:
        """Wait for all readers and report. Those not done after ``seconds`` are errors."""
        self._tell(f"limit {time.monotonic_ns() + int(seconds * 1e9)}")
        report = msgspec.convert(self._event("done", seconds + START_SECONDS), Report)
        for name, group in report.groups.items():
            if group.errors:
                raise SpoiledError(
                    f"{group.errors} errors of {name}, the first: {group.first_error}"
                )
        return report

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()

    def _event(self, name: str, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise SpoiledError(f"not {name} after {seconds:.0f} s") from None
            if line is None:
                assert self._process.stderr is not None
                raise SpoiledError(f"the client ended: {self._process.stderr.read().strip()}")
            if line["event"] == name:
                return line
            if line["event"] == "done":
                errors = [g["first_error"] for g in line["groups"].values() if g["errors"]]
                raise SpoiledError(
                    f"ended before {name}: {errors[0] if errors else 'without errors'}"
                )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _plan(self) -> bytes:
        requests: dict[Request, int] = {}
        rows: list[str] = []
        for number, group in enumerate(self.groups):
            rows.append(" ".join(["group", group.name, group.mode, *sorted(group.flags)]))
            for reader in group.readers:
                first = requests.setdefault(reader.first, len(requests))
                resume = requests.setdefault(reader.resume or reader.first, len(requests))
                start_us = int(reader.start_seconds * 1e6)
                rows.append(
                    f"reader {number} {first} {resume} {reader.after} {reader.last} {start_us}"
                )
        pieces = [f"target {self.host} {self.port}\nsources {ADDRESSES}\n".encode()]
        for request in requests:
            pieces.append(f"request {len(request.data)} {request.cursor_at}\n".encode())
            pieces.append(request.data + b"\n")
        return b"".join(pieces) + "\n".join([*rows, "go", ""]).encode()
