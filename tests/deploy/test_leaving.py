"""Whether a server sees that a client has left is found behind any kind of balancing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from reattach.path.passage import check_leaving
from reattach.path.probe import Answer, Probe
from reattach.path.timing import Timing


class _BehindFewestConnections:
    """A probe of two processes, behind a proxy that chooses the one with the fewest connections.

    The process that had the stream has two other connections for as long as the examination lasts.
    """

    def __init__(self) -> None:
        self.connections = [2, 0]

    @asynccontextmanager
    async def opened(self, stream: str, **asked: Any) -> AsyncIterator[_Response]:
        del stream, asked
        yield _Response()

    async def state(self) -> Answer:
        process = self.connections.index(min(self.connections))
        self.connections[process] += 1
        await asyncio.sleep(0)
        self.connections[process] -= 1
        streams = [{"stream": "leaving", "client_closed": True}] if process == 0 else []
        return Answer(200, {}, json.dumps({"streams": streams}).encode(), 0.0)


class _Response:
    async def aiter_raw(self) -> AsyncIterator[bytes]:
        yield b": ping\n\n"


async def test_the_process_with_the_stream_is_reached_though_it_has_more_connections() -> None:
    probe = cast("Probe", _BehindFewestConnections())
    finding = await check_leaving(probe, Timing(leaving_seconds=(0.0,)))
    assert (finding.level, finding.figures) == ("ok", {"seen_after_seconds": 0.0})
