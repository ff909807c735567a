"""Clients of a cluster that never give up: they send, read, lose patience and come back elsewhere.

What they do is drawn from a seeded generator; what they saw is in their ``Witness``.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import httpx2

from reattach.testing.faults.history import Kind, Reader, Witness

ANSWER_SECONDS: Final = 20.0
"""How long a plain request may take."""

_PAUSE_SECONDS: Final = 0.05
"""Between two tries of a client that was refused."""

_PATIENCE_SECONDS: Final = (0.3, 1.2)
"""How long a reader bears silence before it tries another server."""

_TAKEN_EVENTS: Final = 40
"""The mean number of events after which a reader leaves for another server."""


class Refused(RuntimeError):
    """A server answered something else than it was asked for."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(f"{answer.url} answers {answer.status_code}: {answer.text}")
        self.earliest_seq = int(answer.json().get("earliest_seq") or 1)
        """The first event that is kept, if the answer tells."""


class Door:
    """One server, as its clients know it."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def got(self, path: str, **query: Any) -> Any:
        """What a GET answers; raises Refused unless that is 200."""
        return (await self._answer(self.http.build_request("GET", path, params=query))).json()

    async def posted(self, path: str, body: Any) -> Any:
        """What a POST answers; raises Refused unless that is 200."""
        return (await self._answer(self.http.build_request("POST", path, json=body))).json()

    async def new_conversation(self) -> str:
        agent = await self.posted("/v1/agents/", {"model": "scripted/echo"})
        made = await self.posted(f"/v1/conversations/?agent_id={agent['id']}", {})
        return str(made["id"])

    async def log_of(self, run_id: str) -> tuple[list[bytes], int]:
        """The frames of a run that has ended, and the number of the first that is kept."""
        path = f"/v1/runs/{run_id}/stream"

        async def replay(cursor: int) -> httpx2.Response:
            body = {"starting_after": cursor}
            return await self._answer(self.http.build_request("POST", path, json=body))

        first_seq = 1
        try:
            answer = await replay(0)
        except Refused as error:
            first_seq = error.earliest_seq
            answer = await replay(first_seq - 1)
        *frames, done, _ = answer.content.split(b"\n\n")
        if done != b"data: [DONE]":
            raise RuntimeError(f"The log of {run_id} ends with {done!r}.")
        return [frame + b"\n\n" for frame in frames], first_seq

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        """The answer, once it is another one than 503; raises Refused unless it is 200."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                answer = await self.http.send(request)
                if answer.status_code == httpx2.codes.OK:
                    return answer
                if answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                    raise Refused(answer)
                await asyncio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def doors(urls: Sequence[str], api_key: str) -> AsyncIterator[list[Door]]:
    """The servers at ``urls``, for clients with that key."""
    headers = {"authorization": f"Bearer {api_key}"}
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=20)
    async with AsyncExitStack() as stack:
        yield [
            Door(
                await stack.enter_async_context(
                    httpx2.AsyncClient(
                        base_url=url, headers=headers, timeout=ANSWER_SECONDS, limits=limits
                    )
                )
            )
            for url in urls
        ]


class Talk:
    """One message to one conversation, its sender and its other readers.

    ``on_event`` is called with the number of events that came, whoever read them.
    """

    def __init__(
        self,
        servers: Sequence[Door],
        conversation_id: str,
        text: str,
        rng: random.Random,
        *,
        name: str,
        may_lose: bool = False,
        on_event: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.conversation_id = conversation_id
        self.otid = f"otid-{rng.getrandbits(64):x}"
        self.witness = Witness(name, may_lose=may_lose)
        self.known = asyncio.Event()
        """Set once the sender was told the run."""
        self._servers = servers
        self._text = text
        self._rng = rng
        self._on_event = on_event

    async def send_and_read(self, first: Door | None = None) -> None:
        """Send, first to ``first``, and again with the same OTID until it is taken; read it all."""
        reader = Reader(self.witness)
        door = first or self._any()
        body = {
            "messages": [{"role": "user", "content": self._text, "otid": self.otid}],
            "background": True,
            "stream_tokens": True,
        }
        path = f"/v1/conversations/{self.conversation_id}/messages"
        while not self.known.is_set():
            await self._read(reader, door, path, body, may_leave=False)
            door = self._any()
        await self._follow(reader)

    async def read(self) -> None:
        """Be one more reader, from the start, once there is a run."""
        await self.known.wait()
        await self._follow(Reader(self.witness))

    async def _follow(self, reader: Reader) -> None:
        while not reader.done:
            path, named = self._named()
            body = {**named, "starting_after": reader.cursor}
            await self._read(reader, self._any(), path, body, may_leave=True)

    def _any(self) -> Door:
        return self._rng.choice(self._servers)

    def _named(self) -> tuple[str, dict[str, str]]:
        """One of the ways to name the run."""
        run_id = self.witness.run_id
        assert run_id is not None, "a reader needs a run"
        path = f"/v1/conversations/{self.conversation_id}/stream"
        return self._rng.choice(
            [
                (f"/v1/runs/{run_id}/stream", {}),
                (path, {"run_id": run_id}),
                (path, {"otid": self.otid}),
                (path, {}),
            ]
        )

    async def _read(
        self, reader: Reader, door: Door, path: str, body: dict[str, Any], *, may_leave: bool
    ) -> None:
        """Read over one connection, until it breaks or patience ends."""
        reader.reconnect()
        patience_seconds = self._rng.uniform(*_PATIENCE_SECONDS) if may_leave else 2.0
        left = self._rng.expovariate(1 / _TAKEN_EVENTS) if may_leave else float("inf")
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(patience_seconds):
                    opened = door.http.stream("POST", path, json=body)
                    answer = await stack.enter_async_context(opened)
                    if answer.status_code != httpx2.codes.OK:
                        await answer.aread()
                if answer.status_code == httpx2.codes.OK:
                    await self._take(reader, answer, patience_seconds, left)
                    return
            self._refused(reader, answer)
        except (httpx2.TransportError, TimeoutError):
            pass
        if not reader.done:
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _take(
        self, reader: Reader, answer: httpx2.Response, patience_seconds: float, left: float
    ) -> None:
        run_id = answer.headers["x-run-id"]
        if self.witness.run_id not in {None, run_id}:
            self.witness.find(Kind.DOUBLE, f"a second run {run_id}")
        self.witness.run_id = run_id
        self.known.set()
        chunks = answer.aiter_raw()
        while left > 0:
            async with asyncio.timeout(patience_seconds):
                data = await anext(chunks, b"")
            if not data:
                if not reader.done:
                    self.witness.find(Kind.OTHER, "a body that ended properly before its [DONE]")
                return
            events = reader.feed(data)
            left -= events
            self._on_event(events)

    def _refused(self, reader: Reader, answer: httpx2.Response) -> None:
        """What an answer that is no stream tells the reader."""
        told = answer.json()
        match answer.status_code:
            case httpx2.codes.SERVICE_UNAVAILABLE:
                if "retry-after" not in answer.headers:
                    self.witness.find(Kind.OTHER, "a 503 without Retry-After")
            case httpx2.codes.BAD_REQUEST if "No active runs found" in told["detail"]:
                pass  # It has ended; it is there by its other names.
            case httpx2.codes.GONE if told.get("earliest_seq"):
                reader.skip_to(told["earliest_seq"] - 1)
            case httpx2.codes.GONE:
                reader.told_of_loss()
                reader.finish()
            case httpx2.codes.CONFLICT if told["code"] == "cursor_ahead":
                reader.told_of_loss()
            case status:
                self.witness.find(Kind.OTHER, f"{status}: {answer.text}")
                reader.finish()
