"""A client that reconnects by itself: events of a run, each once, whatever the network does.

The official SDKs speak to Reattach unmodified, and leave reconnecting to their caller. This one
does it, and is what ``reattach attach`` uses.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from reattach.errors import ConflictError, ExpiredError, NotFoundError, ReattachError

Event = Mapping[str, Any]
"""An event as the wire has it; ``message_type`` says which."""

_READ_SECONDS: Final = 60.0
"""Silence after which a connection counts as dead; the server pings each 15 s."""

_FIRST_DELAY_SECONDS: Final = 0.1
_LAST_DELAY_SECONDS: Final = 5.0
_REFUSALS: Final[Mapping[int, type[ReattachError]]] = {
    404: NotFoundError,
    409: ConflictError,
    410: ExpiredError,
}


@dataclass
class _Position:
    """Where a reader stands: which run, and the last seq that it was given."""

    body: dict[str, Any]
    path: str
    cursor: int = 0
    run_id: str | None = None
    ended: bool = False

    def next_request(self) -> tuple[str, dict[str, Any]]:
        """Once the run is known, resume it; until then repeat what made it."""
        if self.run_id is None:
            return self.path, self.body
        return f"/v1/runs/{self.run_id}/stream", {"starting_after": self.cursor}


class _Patience:
    """How long a reader that makes no progress goes on trying, and how often."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restore()

    def restore(self) -> None:
        self._deadline = asyncio.get_running_loop().time() + self._seconds
        self._delay_seconds = _FIRST_DELAY_SECONDS

    async def wait(self, cursor: int, cause: Exception) -> None:
        """Wait before the next try. Raises TimeoutError when there is to be none."""
        if asyncio.get_running_loop().time() + self._delay_seconds > self._deadline:
            raise TimeoutError(
                f"The server did not answer for {self._seconds:g} seconds. "
                f"Resume later from event {cursor}."
            ) from cause
        await asyncio.sleep(self._delay_seconds)
        self._delay_seconds = min(self._delay_seconds * 2, _LAST_DELAY_SECONDS)


class Client:
    """Sends and follows. Use it as an async context manager.

    ``patience_seconds`` bounds how long it keeps trying while the server can not be reached or
    says that it is not available; progress starts the count anew.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, patience_seconds: float = 120.0
    ) -> None:
        self._base_url = base_url
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._patience_seconds = patience_seconds

    async def __aenter__(self) -> "Client":
        self._http = await asyncio.to_thread(self._connect)
        return self

    def _connect(self) -> httpx2.AsyncClient:
        """Make what holds the connections; it reads certificates, so not on the event loop."""
        timeout = httpx2.Timeout(_READ_SECONDS, connect=5.0)
        return httpx2.AsyncClient(base_url=self._base_url, headers=self._headers, timeout=timeout)

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def send(
        self, conversation_id: str, text: str, *, otid: str | None = None
    ) -> AsyncIterator[Event]:
        """Send a message in the background and yield the events of its run, each once, in order.

        However often the connection breaks, one run comes to be: the message has an OTID, made
        here if none is given. Raises as ``follow`` does.
        """
        message = {"role": "user", "content": text, "otid": otid or str(uuid.uuid4())}
        body = {"messages": [message], "background": True, "stream_tokens": True}
        return self._events(_Position(body, f"/v1/conversations/{conversation_id}/messages"))

    def follow(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        otid: str | None = None,
        agent_id: str | None = None,
        starting_after: int = 0,
    ) -> AsyncIterator[Event]:
        """Yield the events of a run after a cursor, each once, in order, until its end.

        Without ``run_id`` and ``otid`` it is the run that is active in the conversation. Raises
        NotFoundError, ConflictError, ExpiredError and ReattachError as the server refuses, and
        TimeoutError when patience is at its end.
        """
        named = {"run_id": run_id, "otid": otid, "agent_id": agent_id}
        body: dict[str, Any] = {name: one for name, one in named.items() if one is not None}
        path = f"/v1/conversations/{conversation_id}/stream"
        body["starting_after"] = starting_after
        return self._events(_Position(body, path, cursor=starting_after))

    async def _events(self, position: _Position) -> AsyncIterator[Event]:
        patience = _Patience(self._patience_seconds)
        while not position.ended:
            try:
                async for event in self._connection(position):
                    patience.restore()
                    yield event
            except httpx2.TransportError as error:
                await patience.wait(position.cursor, error)

    async def _connection(self, position: _Position) -> AsyncIterator[Event]:
        """The new events of one connection. A break of it is a TransportError, its end as well."""
        path, body = position.next_request()
        async with self._http.stream("POST", path, json=body) as response:
            if response.status_code >= 500 and response.status_code != 501:
                raise httpx2.ConnectError(f"the server answered {response.status_code}")
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            position.run_id = response.headers.get("x-run-id", position.run_id)
            async for sent in httpx2.EventSource(response, max_event_size=None):
                if sent.data == "[DONE]":
                    position.ended = True
                    return
                event = sent.json()
                assert isinstance(event, dict)
                seq = event.get("seq_id")
                if isinstance(seq, int) and seq > position.cursor:
                    position.cursor = seq
                    yield event
        raise httpx2.RemoteProtocolError("the stream ended before the answer did")


def _refusal(status: int, body: bytes) -> ReattachError:
    detail = body.decode("utf-8", "replace")[:1000]
    error = ReattachError(f"The server answered {status}: {detail}")
    kind = _REFUSALS.get(status)
    if kind is not None:
        error = kind(f"The server answered {status}: {detail}")
    return error
