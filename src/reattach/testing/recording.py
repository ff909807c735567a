"""Transports that record the bytes that the official SDK receives. Needs httpx, as the SDK does."""

import re
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import cache, cached_property
from typing import Final

import httpx

_SEQ: Final = re.compile(rb'"seq_id":(\d+)')


class Recording(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport that records the body of every stream, as it is read.

    Give it to the official SDK as ``http_client=httpx.Client(transport=Recording())``, or to its
    asynchronous client in an ``httpx.AsyncClient``; one recording serves one client.
    """

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        """All requests in order, including the SDK's own retries."""
        self.streams: list[bytearray] = []
        """The body of each stream so far, in the order of their starts."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self._transport.handle_request(request)
        if (record := self._new_record(response)) is not None:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _Tee(response.stream, record)
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = await self._async_transport.handle_async_request(request)
        if (record := self._new_record(response)) is not None:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _AsyncTee(response.stream, record)
        return response

    def close(self) -> None:
        self._transport.close()

    async def aclose(self) -> None:
        await self._async_transport.aclose()

    def _new_record(self, response: httpx.Response) -> bytearray | None:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            return None
        self.streams.append(bytearray())
        return self.streams[-1]

    @cached_property
    def _transport(self) -> httpx.HTTPTransport:
        return httpx.HTTPTransport(verify=_tls())

    @cached_property
    def _async_transport(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=_tls())


@cache
def _tls() -> ssl.SSLContext:
    """Load the system's certificates once, because that takes longer than most tests."""
    return ssl.create_default_context()


class _Tee(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, record: bytearray) -> None:
        self._stream = stream
        self._record = record

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._record += chunk
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _AsyncTee(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, record: bytearray) -> None:
        self._stream = stream
        self._record = record

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._record += chunk
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def whole_frames(body: bytes | bytearray) -> list[bytes]:
    """Split a body into its complete frames, and ignore a last incomplete one."""
    return [bytes(frame) + b"\n\n" for frame in body.split(b"\n\n")[:-1]]


def seq_of(frame: bytes) -> int:
    """Return the ``seq_id`` of a frame, or 0 if it has none."""
    match = _SEQ.search(frame)
    return int(match[1]) if match else 0


def frames_to(body: bytes | bytearray, last_seq: int, *, after: int = 0) -> bytes:
    """Return the numbered frames of ``body`` up to ``last_seq``, without keepalives.

    ``after`` is the cursor of the request. A keepalive is a frame that repeats this cursor or the
    number of the frame before it.
    """
    kept: list[bytes] = []
    last = after
    for frame in whole_frames(body):
        seq = seq_of(frame)
        if not last < seq <= last_seq:
            continue
        last = seq
        kept.append(frame)
    return b"".join(kept)
