"""Requests to the probe routes of a server, over a new connection each."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from reattach.client.drivers.transport import needs_certificates
from reattach.domain.ids import new_uuid
from reattach.path.recording import Recording

_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
LAST_EVENT_ID: Final = "run-00000000-0000-4000-8000-000000000000:7"
"""Sent with each request, to see whether it arrives."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    seconds: float
    """Time from the request to the end of the response."""

    @property
    def members(self) -> dict[str, Any]:
        """The JSON object of the body; ``{}`` for anything else."""
        with suppress(ValueError):
            value = httpx2.Response(200, content=self.content).json()
            if isinstance(value, dict):
                return value
        return {}


class Probe:
    """One probe of a server, through everything that stands before it.

    Each request has a connection of its own, so that measurements do not depend on earlier ones and
    a balancer may choose another process.
    """

    def __init__(self, http: httpx2.AsyncClient, url: str, api_key: str | None) -> None:
        self.id = f"probe-{new_uuid()}"
        self.url = url
        self._http = http
        self._authorization = None if api_key is None else f"Bearer {api_key}"

    @property
    def authorization_sha256(self) -> str | None:
        """The digest of the header ``Authorization`` as it is sent."""
        if self._authorization is None:
            return None
        return hashlib.sha256(self._authorization.encode("utf-8", "surrogateescape")).hexdigest()

    async def state(self) -> Answer:
        """Ask for the state of the probe, and how the request arrived.

        Raises httpx2.RequestError.
        """
        return await self._send("GET", f"?probe={self.id}")

    async def end(self, processes: int) -> None:
        """End the streams of the probe that are still open, in about this many processes."""
        # Each request may reach another process, and one that it misses ends them by itself.
        requests = 1 if processes == 1 else processes * 2
        with suppress(httpx2.RequestError):
            for _ in range(requests):
                await self._send("DELETE", f"?probe={self.id}", seconds=_END_SECONDS)

    async def error(self, status: int) -> Answer:
        """Let the server answer with an error. Raises httpx2.RequestError."""
        return await self._send("POST", "/error", {"probe": self.id, "status": status})

    async def upload(self, size_bytes: int, within_seconds: float) -> Answer:
        """Send a body of this size. Raises httpx2.RequestError, TimeoutError."""
        padding = "x" * (size_bytes - len(f'{{"probe":"{self.id}","padding":""}}'))
        content = f'{{"probe":"{self.id}","padding":"{padding}"}}'.encode()
        async with asyncio.timeout(within_seconds):
            return await self._send("POST", "/upload", content=content, seconds=within_seconds)

    async def record(
        self, stream: str, *, within_seconds: float, encoding: str = "identity", **asked: Any
    ) -> Recording:
        """Read a whole stream, for at most ``within_seconds``."""
        frames = asked.get("frames", 1) + (1 if asked.get("burst_bytes") else 0)
        recording = Recording(asked_frames=frames)
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(within_seconds),
                self.opened(stream, encoding=encoding, **asked) as response,
            ):
                recording.begin(
                    response.status_code, _lowered(response.headers), time.monotonic() - began
                )
                if response.status_code != 200:
                    answer = Answer(response.status_code, {}, await response.aread(), 0.0)
                    recording.cause = str(answer.members.get("detail", ""))
                else:
                    async for data in response.aiter_raw():
                        recording.take(data, time.monotonic() - began)
            recording.end = "whole" if recording.status == 200 else "error"
        except TimeoutError:
            recording.end = "silent"
        except httpx2.RemoteProtocolError as error:
            recording.end, recording.cause = "closed", _words(error)
        except httpx2.RequestError as error:
            recording.end, recording.cause = "reset", _words(error)
        recording.ended_at_seconds = time.monotonic() - began
        return recording

    @asynccontextmanager
    async def opened(
        self, stream: str, *, encoding: str = "identity", **asked: Any
    ) -> AsyncIterator[httpx2.Response]:
        """Open a stream, whose body the caller reads. Raises httpx2.RequestError."""
        body = {"probe": self.id, "stream": stream, **asked}
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        request = self._http.build_request(
            "POST",
            f"{self.url}/v1/admin/probe/stream",
            json=body,
            headers={**self._headers(), "accept": "text/event-stream", "accept-encoding": encoding},
            timeout=timeout,
        )
        response = await self._http.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content: bytes | None = None,
        seconds: float = _ANSWER_SECONDS,
    ) -> Answer:
        headers = {**self._headers(), "accept-encoding": "identity"}
        if content is not None:
            headers["content-type"] = "application/json"
        began = time.monotonic()
        response = await self._http.request(
            method,
            f"{self.url}/v1/admin/probe{path}",
            json=body,
            content=content,
            headers=headers,
            timeout=httpx2.Timeout(seconds, connect=_CONNECT_SECONDS),
        )
        took = time.monotonic() - began
        return Answer(response.status_code, _lowered(response.headers), response.content, took)

    def _headers(self) -> dict[str, str]:
        headers = {"last-event-id": LAST_EVENT_ID}
        if self._authorization is not None:
            headers["authorization"] = self._authorization
        return headers


def new_http_client(url: str) -> httpx2.AsyncClient:
    """Return a client that keeps no connections and follows no redirects. Reads certificates."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(limits=limits, follow_redirects=False, verify=needs_certificates(url))


def _lowered(headers: httpx2.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
