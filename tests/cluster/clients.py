"""Clients of one server of a cluster, over sockets and without an SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from tests.support import raw_clients as clients
from tests.support.event_stream import EventStream, query_of
from tests.support.received import Received

WAIT_SECONDS = 20.0
"""Bound of every wait that is not itself a promise."""


class Stream:
    """A stream that is read on demand and checked while it is read."""

    def __init__(self, answer: httpx2.Response, cursor: int) -> None:
        self.received = Received(cursor)
        self.run_id = str(answer.headers.get("x-run-id"))
        self._chunks = answer.aiter_raw()
        self._form = EventStream() if answer.request.method == "GET" else None

    def _feed(self, data: bytes) -> None:
        self.received.feed(data if self._form is None else self._form.feed(data))

    async def until(self, seq: int) -> Received:
        """Read until the event ``seq`` has come."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.received.cursor < seq:
                self._feed(await anext(self._chunks))
        return self.received

    async def to_end(self, seconds: float = WAIT_SECONDS) -> Received:
        """Read to the end of the body within ``seconds``. It must be the end of the log too."""
        async with asyncio.timeout(seconds):
            async for data in self._chunks:
                self._feed(data)
        assert self.received.done
        return self.received

    async def is_cut(self) -> bool:
        """Read until the connection is dropped; False if the body ends properly."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                async for data in self._chunks:
                    self._feed(data)
        except httpx2.TransportError:
            return True
        return False


class Client(clients.Client):
    """A client whose streams are read on demand."""

    @asynccontextmanager
    async def stream(
        self, path: str, body: Any, *, cursor: int = 0, method: str = "POST"
    ) -> AsyncIterator[Stream]:
        """Open a stream; GET sends the body as the query. Fails if the answer is not one."""
        if cursor:
            body = {**body, "starting_after": cursor}
        sent = {"json": body} if method == "POST" else {"params": query_of(body)}
        async with self.http.stream(method, path, **sent) as answer:
            if answer.status_code != 200:
                raise AssertionError((await answer.aread()).decode())
            yield Stream(answer, cursor)

    @asynccontextmanager
    async def sent(
        self, conversation_id: str, text: str, *, otid: str | None = None, **more: Any
    ) -> AsyncIterator[Stream]:
        """Send in the background and open the stream."""
        path = f"/v1/conversations/{conversation_id}/messages"
        async with self.stream(path, send_body(text, otid=otid, **more)) as stream:
            yield stream

    async def resumed(self, run_id: str) -> Received:
        """Read a whole run."""
        async with self.stream(f"/v1/runs/{run_id}/stream", {}) as stream:
            return await stream.to_end()

    async def cancel(self, conversation_id: str) -> dict[str, str]:
        answer = await self.post(f"/v1/conversations/{conversation_id}/cancel")
        assert answer.status_code == 200, answer.text
        states: dict[str, str] = answer.json()
        return states


def send_body(text: str, *, otid: str | None = None, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text} | ({"otid": otid} if otid else {})
    return {"messages": [message], "background": True, "stream_tokens": True, **more}


@asynccontextmanager
async def client_at(url: str, api_key: str) -> AsyncIterator[Client]:
    limits = httpx2.Limits(max_connections=200)
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx2.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=WAIT_SECONDS,
        limits=limits,
        follow_redirects=True,
    ) as http:
        yield Client(http)
