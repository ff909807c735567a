"""Servers behind a proxy whose bytes the test writes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

WAIT_SECONDS = 20.0
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Run-Id: run-1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Exchange:
    """A complete request and its connection."""

    method: str
    path: str
    body: bytes
    connection: int
    """Its number at this upstream."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_SECONDS):
            await self.writer.drain()

    async def left(self) -> None:
        """Return when the other side has closed the connection."""
        async with asyncio.timeout(WAIT_SECONDS):
            with suppress(ConnectionError):  # a reset also closes the connection
                assert await self.reader.read() == b""

    def hang_up(self) -> None:
        self.writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


@dataclass
class Upstream:
    """Answers health checks and passes every other request to ``answer``."""

    answer: Answer
    address: tuple[str, int] = ("", 0)
    exchanges: list[Exchange] = field(default_factory=list)
    connections: int = 0

    @property
    def requests(self) -> list[tuple[str, str]]:
        return [(one.method, one.path) for one in self.exchanges]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = 0
                for line in head.lower().split("\r\n"):
                    if line.startswith("content-length:"):
                        length = int(line.partition(":")[2])
                body = await reader.readexactly(length)
                exchange = Exchange(method, path, body, number, reader, writer)
                if path == "/v1/ready/":
                    await exchange.say(READY)
                else:
                    self.exchanges.append(exchange)
                    await self.answer(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the proxy has closed it
        finally:
            writer.transport.abort()


@asynccontextmanager
async def playing(answer: Answer) -> AsyncIterator[Upstream]:
    upstream = Upstream(answer)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.address = server.sockets[0].getsockname()[:2]
    try:
        yield upstream
    finally:
        server.close()
        for one in upstream.exchanges:
            one.hang_up()
