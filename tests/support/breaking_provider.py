"""A provider that fails on demand, over real HTTP, in the dialects of OpenAI, Anthropic and Google.

Its answer is one ``Answer`` for all requests.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from reattach.testing.providers import anthropic, openai
from reattach.testing.providers.forms import data, joined
from tests.support.http_server import listening, read_request

End = Literal["whole", "cut", "reset", "silent"]
"""How a body ends: properly, without its last chunk, with a reset, or not at all."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to every request."""

    body: bytes = b""
    end: End = "whole"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    responds: bool = True
    """Whether it sends a head at all."""
    later: Sequence[tuple[float, bytes]] = ()
    """More of the body, each piece after a silence of so many seconds."""

    @property
    def content_type(self) -> str:
        return "text/event-stream" if self.status == 200 else "application/json"


class Dialect(Protocol):
    """The pieces of an answer in one provider's form."""

    name: str

    def begins(self) -> bytes:
        """Everything before the first text."""

    def says(self, text: str) -> bytes: ...

    def ends(self) -> bytes: ...

    def withholds(self) -> bytes:
        """The end of an answer that the provider's filter stopped."""

    def error(self, kind: str, status: int, message: str) -> bytes:
        """The body of a refusal. ``kind`` is the provider's name for it."""

    def error_event(self, kind: str, status: int, message: str) -> bytes:
        """The same within a stream."""

    def garbage(self) -> bytes:
        """An event that is no JSON."""


class OpenAI:
    name = "openai"

    def begins(self) -> bytes:
        return openai.START

    def says(self, text: str) -> bytes:
        return b"".join(openai.says(text))

    def ends(self) -> bytes:
        return openai.stops() + openai.DONE

    def withholds(self) -> bytes:
        return openai.stops("content_filter") + openai.DONE

    def error(self, kind: str, status: int, message: str) -> bytes:
        del status
        return json.dumps({"error": {"message": message, "type": kind, "code": kind}}).encode()

    def error_event(self, kind: str, status: int, message: str) -> bytes:
        return b"data: " + self.error(kind, status, message) + b"\n\n"

    def garbage(self) -> bytes:
        return b"data: {no\n\n"


class Anthropic:
    name = "anthropic"

    def begins(self) -> bytes:
        return anthropic.begins() + anthropic.PING

    def says(self, text: str) -> bytes:
        return b"".join(anthropic.says(text, stops=False))

    def ends(self) -> bytes:
        stopped = anthropic.event("content_block_stop", index=0)
        return b"".join(joined(stopped, anthropic.END))

    def withholds(self) -> bytes:
        stopped = anthropic.event("content_block_stop", index=0)
        return stopped + anthropic.reasons("refusal") + anthropic.STOP

    def error(self, kind: str, status: int, message: str) -> bytes:
        del status
        error = {"type": "error", "error": {"type": kind, "message": message}}
        return json.dumps(error).encode()

    def error_event(self, kind: str, status: int, message: str) -> bytes:
        return b"event: error\ndata: " + self.error(kind, status, message) + b"\n\n"

    def garbage(self) -> bytes:
        return b"event: message_delta\ndata: {no\n\n"


class Google:
    name = "google"

    def begins(self) -> bytes:
        return b""

    def says(self, text: str) -> bytes:
        return self._chunk({"content": {"role": "model", "parts": [{"text": text}]}})

    def ends(self) -> bytes:
        return self._chunk({"finishReason": "STOP"})

    def withholds(self) -> bytes:
        return self._chunk({"finishReason": "SAFETY"})

    def error(self, kind: str, status: int, message: str) -> bytes:
        error = {"error": {"code": status, "message": message, "status": kind}}
        return json.dumps(error).encode()

    def error_event(self, kind: str, status: int, message: str) -> bytes:
        # Google sends it as a line without a name.
        return self.error(kind, status, message) + b"\r\n\r\n"

    def garbage(self) -> bytes:
        return b"data: {no\r\n\r\n"

    def _chunk(self, candidate: Mapping[str, Any]) -> bytes:
        usage = {"promptTokenCount": 1, "candidatesTokenCount": 2, "totalTokenCount": 3}
        return data({"candidates": [{"index": 0, **candidate}], "usageMetadata": usage})


DIALECTS: Mapping[str, Dialect] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "google": Google(),
}


@dataclass
class BreakingProvider:
    """The provider's next answer and the requests so far."""

    answer: Answer = field(default_factory=Answer)
    url: str = ""
    requests: list[Mapping[str, Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_request(reader)
            self.requests.append(request.body)
            await self._send(self.answer, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _send(
        self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if answer.responds:
            headers = {"content-type": answer.content_type, **answer.headers}
            head = [f"HTTP/1.1 {answer.status} As asked"]
            head += [f"{name}: {value}" for name, value in headers.items()]
            head += ["transfer-encoding: chunked", "connection: close", "", ""]
            writer.write("\r\n".join(head).encode())
            if answer.body:
                writer.write(b"%x\r\n%b\r\n" % (len(answer.body), answer.body))
            await writer.drain()
        for seconds, piece in answer.later:
            await asyncio.sleep(seconds)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        match answer.end:
            case "whole":
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            case "silent":
                await reader.read()  # Until the client hangs up.
            case "reset":
                raw: socket.socket = writer.get_extra_info("socket")
                linger = struct.pack("ii", 1, 0)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            case "cut":
                pass


@asynccontextmanager
async def breaking_provider() -> AsyncIterator[BreakingProvider]:
    """Serve on a free loopback port."""
    state = BreakingProvider()
    async with listening(state.serve) as state.url:
        yield state
