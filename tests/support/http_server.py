"""The base of small HTTP servers on loopback that receive JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection."""


@dataclass(frozen=True, slots=True)
class Request:
    line: str
    headers: Mapping[str, str]
    """Headers by lower-case name."""
    body: Mapping[str, Any]


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read a request; no body is ``{}``. Raises IncompleteReadError if the client disconnects."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head[0], headers, json.loads(content or b"{}"))


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """Serve on a free loopback port, and yield the origin."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}"
