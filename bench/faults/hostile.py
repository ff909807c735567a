"""A tenant that abuses a cluster while tests watch the runs of others."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import httpx2

_LARGE_BODY_VALUES: Final = 200_000
_CONNECTIONS: Final = 40
_ERRORS: Final = (OSError, TimeoutError, httpx2.HTTPError, ValueError, KeyError)
"""Refusals and broken connections, after which this tenant tries again."""


class HostileTenant:
    """Large bodies, many sends, slow readers, silent connections and hanging receivers, at once.

    ``requests`` counts its attempts.
    """

    def __init__(self, urls: Sequence[str], api_key: str, seed: int) -> None:
        self.requests = 0
        self._urls = urls
        self._key = api_key
        self._rng = random.Random(seed)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Run all attacks for as long as the context lasts."""
        receiver = await asyncio.start_server(_hang, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/"
        works = [self._flood(), self._send(), self._hold(), self._read_slowly(), self._call(url)]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            receiver.close()
        for task in tasks:
            if not task.cancelled():
                task.result()

    def _client(self) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self._key}"}
        return httpx2.AsyncClient(base_url=self._rng.choice(self._urls), headers=headers, timeout=5)

    async def _flood(self) -> None:
        """Send bodies of many values."""
        body = json.dumps({"messages": [[]] * _LARGE_BODY_VALUES}).encode()
        while True:
            with suppress(*_ERRORS):
                async with self._client() as client:
                    self.requests += 1
                    headers = {"content-type": "application/json"}
                    await client.post("/v1/agents/", content=body, headers=headers)
            await asyncio.sleep(0.2)

    async def _send(self) -> None:
        """Start runs that never end by themselves, and cancel them."""
        while True:
            with suppress(*_ERRORS):
                async with self._client() as client:
                    agents = [await self._agent(client) for _ in range(5)]
                    for agent in agents:
                        await self._start(client, agent, "[chunks=20000][rate=500]")
                    await asyncio.sleep(1)
                    for agent in agents:
                        await client.post(f"/v1/agents/{agent}/messages/cancel")
            await asyncio.sleep(0.2)

    async def _agent(self, client: httpx2.AsyncClient) -> str:
        self.requests += 1
        answer = await client.post("/v1/agents/", json={"model": "scripted/echo"})
        return str(answer.json()["id"])

    async def _start(
        self, client: httpx2.AsyncClient, agent: str, text: str, callback_url: str | None = None
    ) -> None:
        self.requests += 1
        body = {"messages": [{"role": "user", "content": text}]}
        more = {} if callback_url is None else {"callback_url": callback_url}
        await client.post(f"/v1/agents/{agent}/messages/async", json=body | more)

    async def _hold(self) -> None:
        """Open connections that send half a head and nothing more."""
        while True:
            writers = []
            for _ in range(_CONNECTIONS):
                parts = urlsplit(self._rng.choice(self._urls))
                with suppress(*_ERRORS):
                    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    writer.write(b"POST /v1/agents/ HTTP/1.1\r\nHost: localhost\r\n")
                    writers.append(writer)
                    self.requests += 1
            await asyncio.sleep(3)
            for writer in writers:
                writer.close()

    async def _read_slowly(self) -> None:
        """Open streams of large answers and read nothing."""
        while True:
            with suppress(*_ERRORS):
                async with self._client() as client:
                    self.requests += 1
                    agent = await self._agent(client)
                    body = {"messages": [{"role": "user", "content": "[chunks=2000][size=1000]"}]}
                    path = f"/v1/agents/{agent}/messages/stream"
                    async with client.stream("POST", path, json=body):
                        await asyncio.sleep(2)
            await asyncio.sleep(0.1)

    async def _call(self, receiver: str) -> None:
        """Start runs whose callback receivers hang."""
        while True:
            with suppress(*_ERRORS):
                async with self._client() as client:
                    agent = await self._agent(client)
                    await self._start(client, agent, "short", receiver)
            await asyncio.sleep(0.3)


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a request and never answer it."""
    with suppress(*_ERRORS, asyncio.CancelledError):  # The loop closes while it hangs.
        while await reader.read(65536):
            pass
    writer.close()
