"""The cost of metering an append, in one process where both ways alternate.

The CPU of a server differs by more from start to start than a meter costs.
"""

import asyncio
import time
from statistics import median
from typing import Final

import uvloop

from bench.measuring.rounds import Figures
from reattach.domain.ids import Token
from reattach.log.memory import MemoryLog
from reattach.log.metered import MeteredLog
from reattach.meters.meters import Meters

FRAME: Final = b"data: " + b"x" * 340 + b"\n\n"
WRITERS: Final = 200
TICKS, QUICK_TICKS = 100, 5
ROUNDS, QUICK_ROUNDS = 21, 3


async def appends(ticks: int, *, metered: bool) -> float:
    """Append an event to each of many runs in each tick; return the CPU µs per event."""
    log = MeteredLog(MemoryLog(), Meters()) if metered else MemoryLog()
    writers = [await log.open(f"run-{number}", Token(1)) for number in range(WRITERS)]
    began = time.process_time()
    for _ in range(ticks):
        for writer in writers:
            writer.put([FRAME])
        for writer in writers:
            await writer.flush()
    used = time.process_time() - began
    await log.aclose()
    return 1e6 * used / WRITERS / ticks


async def _alternately(rounds: int, ticks: int) -> Figures:
    await appends(ticks, metered=True)
    pairs = [
        (await appends(ticks, metered=False), await appends(ticks, metered=True))
        for _ in range(rounds)
    ]
    return {
        "CPU µs without": median(without for without, _ in pairs),
        "CPU µs with": median(metered for _, metered in pairs),
        "CPU µs of metering": median(metered - without for without, metered in pairs),
    }


def metering(*, quick: bool) -> Figures:
    """Measure the CPU of an append without its store, with and without a meter."""
    rounds, ticks = (QUICK_ROUNDS, QUICK_TICKS) if quick else (ROUNDS, TICKS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_alternately(rounds, ticks))
