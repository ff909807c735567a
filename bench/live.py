"""One run, live: how long an event takes from the engine's yield to the byte at the reader.

In the background, durable on SQLite; both processes read the machine's one monotonic clock.
"""

import asyncio
import re
import time
from statistics import quantiles

from bench.options import Options
from bench.reader import conversation_with, open_stream
from bench.server import BenchServer, running

EVENTS = 500
RATE = 50
_STAMP = re.compile(rb'"content":"(\d+) "')


async def run(server: BenchServer) -> None:
    conversation = conversation_with(server.place, "function/paced")
    body = {"input": f"{EVENTS} {RATE}", "background": True, "stream_tokens": True}
    begin = time.monotonic()
    reader, writer = await open_stream(
        server.place, f"/v1/conversations/{conversation}/messages", body
    )
    headers_ms = (time.monotonic() - begin) * 1000
    lags_ms: list[float] = []
    before = server.cost()
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        now = time.monotonic_ns()
        if (match := _STAMP.search(line)) is not None:
            lags_ms.append((now - int(match[1])) / 1e6)
    used = server.cost().cpu_seconds - before.cpu_seconds
    writer.close()
    if len(lags_ms) != EVENTS:
        raise RuntimeError(f"{len(lags_ms)} of {EVENTS} events came")
    cuts = quantiles(lags_ms, n=100)
    print(
        f"  {EVENTS} events at {RATE}/s: lag p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms, "
        f"longest {max(lags_ms):.2f} ms; {100 * used / (EVENTS / RATE):.1f} % of a core; "
        f"headers after {headers_ms:.1f} ms"
    )


def main(_options: Options) -> None:
    with running() as server:
        asyncio.run(run(server))
