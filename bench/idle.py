"""Readers on a silent run: what they cost the server while nothing happens."""

import asyncio
import time

from bench.options import Options
from bench.reader import conversation_with, open_stream
from bench.server import BenchServer, Cost, running

READERS = 200
WINDOW_SECONDS = 10.0
"""Within the 15 seconds after which the first ping is due."""


async def measured(server: BenchServer, seconds: float) -> Cost:
    before = server.cost()
    await asyncio.sleep(seconds)
    after = server.cost()
    return Cost(
        after.cpu_seconds - before.cpu_seconds,
        after.reads - before.reads,
        after.writes - before.writes,
    )


async def run(server: BenchServer) -> None:
    conversation = conversation_with(server.place, "function/silent")
    body = {"input": "x", "background": True, "include_pings": False}
    _, sender = await open_stream(server.place, f"/v1/conversations/{conversation}/messages", body)
    sender.close()
    await asyncio.sleep(2)
    alone = await measured(server, WINDOW_SECONDS)
    memory = server.memory_bytes()
    begin = time.monotonic()
    streams = [
        await open_stream(server.place, f"/v1/conversations/{conversation}/stream", {})
        for _ in range(READERS)
    ]
    opened = time.monotonic() - begin
    await asyncio.sleep(2)
    held = await measured(server, WINDOW_SECONDS)
    per_reader = (server.memory_bytes() - memory) / READERS / 1024
    pinged = await measured(server, 15)
    rows = (("no reader", alone), (f"{READERS} readers", held), ("with their pings", pinged))
    for name, cost, seconds in [(*row, WINDOW_SECONDS) for row in rows[:2]] + [(*rows[2], 15.0)]:
        print(
            f"  {name:16} {100 * cost.cpu_seconds / seconds:5.2f} % of a core, "
            f"{cost.reads} read and {cost.writes} write calls in {seconds:g} s"
        )
    print(f"  {READERS} streams opened in {opened:.2f} s, {per_reader:.1f} KiB of memory for each")
    for _, writer in streams:
        writer.close()


def main(_options: Options) -> None:
    with running() as server:
        asyncio.run(run(server))
