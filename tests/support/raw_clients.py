"""Clients of a server process over sockets, without an SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from reattach.testing.programs.server import ServerProcess
from tests.support.received import Received

WAIT_SECONDS = 30.0


class Client:
    """A client of one server, which may be killed meanwhile."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, body: Any = None) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def got(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def agent(self) -> str:
        made = await self.post("/v1/agents/", {"model": "scripted/echo"})
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    async def conversation(self) -> str:
        made = await self.post(f"/v1/conversations/?agent_id={await self.agent()}", {})
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    async def send(
        self,
        conversation_id: str,
        text: str,
        received: Received,
        *,
        otid: str,
        on_read: Callable[[], None] | None = None,
    ) -> str | None:
        """Send and read the answer. Returns what ``read`` returns."""
        body = {
            "messages": [{"role": "user", "content": text, "otid": otid}],
            "background": True,
            "stream_tokens": True,
        }
        path = f"/v1/conversations/{conversation_id}/messages"
        return await self.read(path, body, received, on_read=on_read)

    async def resume(self, run_id: str, received: Received) -> str | None:
        """Resume after the last event of ``received``."""
        body = {"starting_after": received.cursor}
        return await self.read(f"/v1/runs/{run_id}/stream", body, received)

    async def read(
        self,
        path: str,
        body: Any,
        received: Received,
        *,
        on_read: Callable[[], None] | None = None,
    ) -> str | None:
        """Read a stream to the end of its body or connection, and return the run's id if known."""
        run_id = None
        received.reconnect()
        try:
            async with self.http.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    raise AssertionError((await answer.aread()).decode())
                run_id = answer.headers["x-run-id"]
                async for data in answer.aiter_raw():
                    received.feed(data)
                    if on_read is not None:
                        on_read()
        except httpx2.TransportError:
            assert not received.done
        else:
            assert received.done, "a body ended properly before its [DONE]"
        return run_id

    async def stored_text(self, conversation_id: str, run_id: str) -> str:
        """Return the stored text of the run's answer."""
        messages = await self.got(
            f"/v1/conversations/{conversation_id}/messages", limit=1000, order="asc"
        )
        return "".join(
            message["content"]
            for message in messages
            if message["message_type"] == "assistant_message" and message["run_id"] == run_id
        )


@asynccontextmanager
async def client_of(server: ServerProcess) -> AsyncIterator[Client]:
    limits = httpx2.Limits(max_connections=200)
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else None
    async with httpx2.AsyncClient(
        base_url=server.url,
        timeout=WAIT_SECONDS,
        limits=limits,
        follow_redirects=True,
        headers=headers,
    ) as http:
        yield Client(http)


async def start(server: ServerProcess) -> None:
    await asyncio.to_thread(server.start)
