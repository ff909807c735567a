"""A receiver of callbacks on a loopback port, with scripted answers."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.live_server import WAIT_SECONDS


@dataclass(frozen=True)
class Call:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(self.body)
        return payload


@dataclass
class Receiver:
    origin: str = ""
    port: int = 0
    answers: list[str | None] = field(default_factory=list)
    """Heads of the next answers. None sends no answer. Later answers are 200."""
    calls: list[Call] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.origin}:{self.port}/done"

    async def call(self, number: int = 1) -> Call:
        """Wait for the call of this number, counted from 1."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.calls) < number:
                self._came.clear()
                await self._came.wait()
        return self.calls[number - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
            pairs = (one.partition(": ") for one in lines)
            headers = {name.lower(): value for name, _, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            answer = self.answers.pop(0) if self.answers else "200 OK"
            self.calls.append(Call(line, headers, body))
            self._came.set()
            if answer is None:
                await reader.read()  # until the caller disconnects
            else:
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def receiving(
    *answers: str | None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """Serve, with ``tls`` by https."""
    literal = f"[{host}]" if ":" in host else host
    origin = f"{'http' if tls is None else 'https'}://{literal}"
    receiver = Receiver(origin, answers=list(answers))
    server = await asyncio.start_server(receiver.serve, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
