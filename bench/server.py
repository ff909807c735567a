"""The server that is measured: the whole product, with an engine that stamps its events.

As a program it serves; ``BenchServer`` starts it and looks at it from outside.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from typing_extensions import override

from bench.reader import Place
from reattach.engine.base import Turn
from reattach.engine.function import FunctionEngine
from reattach.http.serving import serve
from reattach.observe import configure_logging
from reattach.settings import Settings
from reattach.testing.process import ServerProcess

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


async def paced(turn: Turn) -> AsyncIterator[str]:
    """``COUNT RATE``: so many events a second, each the clock's nanoseconds when it was yielded."""
    count, rate = turn.input[-1].text.split()
    begin = asyncio.get_running_loop().time()
    for index in range(int(count)):
        due = begin + index / float(rate)
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        yield f"{time.monotonic_ns()} "


async def silent(_turn: Turn) -> AsyncIterator[str]:
    """One event, and then nothing until it is cancelled."""
    yield "first "
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Cost:
    """What a process has used so far."""

    cpu_seconds: float
    reads: int
    writes: int


def cost_of(pid: int) -> Cost:
    """What a process has used since its start."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    io = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
    ticks = int(fields[11]) + int(fields[12])
    return Cost(ticks / _TICKS_PER_SECOND, int(io["syscr"]), int(io["syscw"]))


class BenchServer(ServerProcess):
    """A running server, seen from outside."""

    @property
    def place(self) -> Place:
        return Place(self.url)

    def cost(self) -> Cost:
        return cost_of(self.pid)

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024

    @override
    def _command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "bench.server", self._data_dir]


@contextmanager
def running() -> Iterator[BenchServer]:
    """A fresh server on a free port and an empty directory."""
    with (
        tempfile.TemporaryDirectory(prefix="reattach-bench-") as directory,
        BenchServer(Path(directory)) as server,
    ):
        yield server


def tell(url: str) -> None:
    print(f"The server is listening on {url}", flush=True)


def main() -> None:
    configure_logging("console", "error")
    settings = Settings(port=0, data_dir=Path(sys.argv[1]), log_level="error")
    engine = FunctionEngine({"paced": paced, "silent": silent})
    uvloop.run(serve(settings, engines=[engine], on_ready=tell))


if __name__ == "__main__":
    main()
