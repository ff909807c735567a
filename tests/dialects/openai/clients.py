"""OpenAI's Python client over a network that breaks where a test wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import httpx2
from openai import AsyncOpenAI

from tests.support.live_server import WAIT_SECONDS


class Cutting(httpx2.AsyncBaseTransport):
    """Breaks the next answer after some frames, or before its head."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=False)
        self.frames: int | None = None
        """The frames of the next answer that pass before the connection breaks."""
        self.loses_head = False
        """Whether the next answer is lost as a whole, after the server has sent it."""
        self.retry_counts: list[str] = []

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def aclose(self) -> None:
        """Stay open: the test closes it, not a client."""

    async def __aexit__(self, *error: object) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.retry_counts.append(request.headers.get("x-stainless-retry-count", ""))
        response = await self._inner.handle_async_request(request)
        if self.loses_head:
            self.loses_head = False
            await response.aclose()
            raise httpx2.ReadError("The answer was lost.")
        if self.frames is None:
            return response
        frames, self.frames = self.frames, None
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Broken(response.stream, frames),
            extensions=response.extensions,
        )


class _Broken(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, frames: int) -> None:
        self._stream = stream
        self._frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        left = self._frames
        async for data in self._stream:
            rest += data
            while left and b"\n\n" in rest:
                frame, _, rest = rest.partition(b"\n\n")
                left -= 1
                yield frame + b"\n\n"
            if not left:
                yield rest[:9]  # The connection may break within a frame.
                raise httpx2.ReadError("The connection broke.")

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def openai_client(
    url: str, network: Cutting, *, retries: int = 0
) -> AsyncIterator[AsyncOpenAI]:
    """The client with its own checks of all answers."""
    async with AsyncOpenAI(
        api_key="none",
        base_url=f"{url}/openai/v1",
        max_retries=retries,
        http_client=httpx2.AsyncClient(transport=network, timeout=WAIT_SECONDS),
        _strict_response_validation=True,
    ) as client:
        yield client
