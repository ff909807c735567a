"""``fastapi-resumable-stream`` from PyPI: a Redis list for each stream, woken by pub/sub."""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi_resumable_stream import (  # type: ignore[import-not-found]
    ResumableStream,
    streaming_response,
)
from redis.asyncio import Redis
from starlette.responses import Response

from bench.yardsticks.asgi import Frames, application, serve

BEGIN_SECONDS = 20.0
"""Time within which a requested run must exist."""
_redis = Redis.from_url(os.environ["BENCH_REDIS_URL"], max_connections=20_000)
_streams = ResumableStream(_redis)


async def produce(run: str, frames: Frames) -> None:
    ended = asyncio.Event()

    async def chunks() -> AsyncIterator[str]:
        async for frame in frames():
            yield frame.decode()
        ended.set()

    await _streams.start(run, chunks)
    await ended.wait()
    while await _streams.status(run) != "done":
        await asyncio.sleep(0.01)


async def stream(run: str, after: int) -> Response:
    async with asyncio.timeout(BEGIN_SECONDS):
        while (resumed := await _streams.resume(run, after=after)) is None:
            await asyncio.sleep(0.01)
    response: Response = streaming_response(resumed)
    return response


if __name__ == "__main__":
    serve(application(produce, stream))
