"""An HTTP server of a provider that answers in the form that the last message names."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from reattach.testing.providers.forms import CUT, Form, failed

_REQUEST_SECONDS = 20.0
_PATHS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/beta/chat/completions"})
_NOT_FOUND = Form("", (b"404 page not found",), failed("404 page not found"), 404, "text/plain")


@dataclass
class Provider:
    """The provider's forms, and the requests that it has received."""

    forms: Mapping[str, Form]
    closing: Form
    """The answer to a tool's return."""
    url: str = ""
    """The server's origin; engines use paths below it."""
    requests: list[Mapping[str, Any]] = field(default_factory=list)
    """The bodies of the requests, oldest first."""
    paths: list[str] = field(default_factory=list)
    """The paths of the requests, oldest first."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                path, request = await _read(reader)
                self.requests.append(request)
                self.paths.append(path)
                await _answer(self._form(request) if path in _PATHS else _NOT_FOUND, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()

    def _form(self, request: Mapping[str, Any]) -> Form:
        last = request["messages"][-1]
        content = last["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if last["role"] == "tool" or any(part.get("type") == "tool_result" for part in parts):
            return self.closing
        return self.forms["".join(part.get("text", "") for part in parts)]


@asynccontextmanager
async def provider(forms: Iterable[Form], closing: Form) -> AsyncIterator[Provider]:
    """Serve ``forms`` on a free loopback port."""
    served = Provider({form.name: form for form in forms}, closing)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
    async with server:
        yield served


async def _read(reader: asyncio.StreamReader) -> tuple[str, Mapping[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    [length] = [
        line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:")
    ]
    body: Mapping[str, Any] = json.loads(await reader.readexactly(int(length)))
    return head.split(" ")[1].partition("?")[0], body


async def _answer(form: Form, writer: asyncio.StreamWriter) -> None:
    writer.write(
        f"HTTP/1.1 {form.status} As asked\r\ncontent-type: {form.content_type}\r\n"
        "transfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode()
    )
    for piece in form.body:
        if piece == CUT.encode():
            writer.write(b"ff\r\ndata: {")
            await writer.drain()
            writer.transport.abort()
            return
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()
