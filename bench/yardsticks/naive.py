"""The common solution: a Redis stream that each reader polls, with one entry per event."""

import asyncio
import os
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from starlette.responses import Response, StreamingResponse

from bench.yardsticks.asgi import Frames, application, serve
from reattach.wire.sse import DONE

POLL_SECONDS = 0.1
BATCH = 100

Entries = list[tuple[bytes, dict[bytes, bytes]]]

_redis = Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=20_000)


async def produce(run: str, frames: Frames) -> None:
    seq = 0
    async for frame in frames():
        seq += 1
        await _redis.xadd(run, {"frame": frame}, id=f"{seq}-0")


async def events(run: str, after: int) -> AsyncIterator[bytes]:
    cursor = f"{after}-0"
    while True:
        entries: Entries = await _redis.xrange(run, min=f"({cursor}", count=BATCH)  # type: ignore[assignment]
        for entry, fields in entries:
            cursor = entry.decode()
            yield fields[b"frame"]
            if fields[b"frame"] == DONE:
                return
        if not entries:
            await asyncio.sleep(POLL_SECONDS)


async def stream(run: str, after: int) -> Response:
    return StreamingResponse(events(run, after), media_type="text/event-stream")


if __name__ == "__main__":
    serve(application(produce, stream))
