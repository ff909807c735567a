"""``python -m bench.appending URL RUNS PER_SECOND SECONDS``: append to a log, and print JSON.

Like the server, a run appends all events that are due once its last append is acknowledged. With
a rate of 0, every run always has an append of FLAT_OUT_EVENTS in flight.
"""

import asyncio
import json
import sys
import time
from collections import deque

import uvloop

from bench.measuring.frames import FrameMaker
from bench.measuring.schedule import Ticker
from reattach.domain.ids import Seq, Token, new_run_id
from reattach.log.base import RunWriter
from reattach.log.open import open_log
from reattach.server.tune_gc import tune_gc

TOKEN = Token(1)
FLAT_OUT_EVENTS = 10
DRAIN_SECONDS = 60.0


async def paced(
    writer: RunWriter, ticker: Ticker, *, start_ns: int, interval_ns: float, events: int
) -> list[int]:
    """Append an event at every interval, and return each one's latency since it was due, in ns."""
    frame = FrameMaker().text()
    due: deque[int] = deque()
    wake = asyncio.Event()
    index = 0

    def fall_due() -> None:
        nonlocal index
        due.append(start_ns + int(index * interval_ns))
        wake.set()
        index += 1
        if index < events:
            ticker.at(start_ns + int(index * interval_ns), fall_due)

    ticker.at(start_ns, fall_due)
    lags: list[int] = []
    while len(lags) < events:
        await wake.wait()
        wake.clear()
        taken = list(due)
        due.clear()
        if taken:
            await writer.append(Seq(len(lags) + 1), [frame] * len(taken))
            now = time.monotonic_ns()
            lags += [now - when for when in taken]
    return lags


async def flat_out(writer: RunWriter, until_ns: int) -> list[int]:
    """Append as fast as possible, and return each append's latency once per event, in ns."""
    frames = [FrameMaker().text()] * FLAT_OUT_EVENTS
    lags: list[int] = []
    while (begin := time.monotonic_ns()) < until_ns:
        await writer.append(Seq(len(lags) + 1), frames)
        lags += [time.monotonic_ns() - begin] * FLAT_OUT_EVENTS
    return lags


async def main(url: str, runs: int, per_second: float, seconds: float) -> None:
    log = await open_log(url)
    names = [new_run_id() for _ in range(runs)]
    writers = [await log.open(name, TOKEN) for name in names]
    ticker = Ticker()
    before = time.process_time()
    begin_ns = time.monotonic_ns()
    start_ns = begin_ns + 10_000_000
    work = []
    for number, writer in enumerate(writers):
        if per_second:
            interval_ns = 1e9 / per_second
            work.append(
                paced(
                    writer, ticker,
                    start_ns=start_ns + int(number * interval_ns / runs),
                    interval_ns=interval_ns,
                    events=max(int(per_second * seconds), 1),
                )
            )  # fmt: skip
        else:
            work.append(flat_out(writer, start_ns + int(seconds * 1e9)))
    async with asyncio.timeout(seconds + DRAIN_SECONDS):
        lags = sorted(lag for of_run in await asyncio.gather(*work) for lag in of_run)
    elapsed = (time.monotonic_ns() - begin_ns) / 1e9
    used = time.process_time() - before
    heads = [await log.head(name) for name in names]
    assert sum(head.last_seq for head in heads) == len(lags), "the log has other events"
    await log.aclose()
    figures = {
        "events per s": len(lags) / elapsed,
        "p50 ms": lags[len(lags) // 2] / 1e6,
        "p99 ms": lags[len(lags) * 99 // 100] / 1e6,
        "max ms": lags[-1] / 1e6,
        "CPU µs per event": 1e6 * used / len(lags),
        "CPU %": 100 * used / elapsed,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    tune_gc()
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
