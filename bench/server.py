"""The server that is measured: the whole product, with an engine that stamps its events.

As a program it serves what the environment's REATTACH_ variables say, and prints its URL.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.frames import UNSTAMPED, stamped
from bench.schedule import Gates, Ticker
from reattach.engine.base import Turn
from reattach.engine.function import FunctionEngine
from reattach.http.serving import serve
from reattach.observe import configure_logging
from reattach.settings import Settings

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_ticker = Ticker()
_gates = Gates()


async def paced(turn: Turn) -> AsyncIterator[str]:
    """``COUNT RATE PHASE_NS GATE``: so many events a second from when the gate opens."""
    count, rate, phase_ns, gate = turn.input[-1].text.split(" ", 3)
    start_ns = await _gates.start_ns(gate) + int(phase_ns)
    for index in range(int(count)):
        due_ns = start_ns + int(index * 1e9 / float(rate))
        await _ticker.until(due_ns)
        yield stamped(due_ns)


async def burst(turn: Turn) -> AsyncIterator[str]:
    """``COUNT``: so many events, as fast as they are taken."""
    for _ in range(int(turn.input[-1].text)):
        yield UNSTAMPED


async def silent(_turn: Turn) -> AsyncIterator[str]:
    """One event, and then nothing until it is cancelled."""
    yield UNSTAMPED
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


def main() -> None:
    configure_logging("console", "error")
    engine = FunctionEngine({"paced": paced, "burst": burst, "silent": silent})
    settings = Settings(port=0, log_level="error")
    uvloop.run(serve(settings, engines=[engine], on_ready=lambda url: print(url, flush=True)))


if __name__ == "__main__":
    main()
