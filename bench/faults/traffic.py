"""Clients of a cluster that retry for ever: they send, read, time out and resume on other servers.

A seeded generator decides what they do. Each run's ``History`` records what they saw. Readers use
both forms of a stream: the POST of the SDKs, and the GET that an ``EventSource`` sends.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from bench.faults.history import History, Kind, Reader
from tests.support.event_stream import EventStream

SCRIPTED: Final = "scripted/echo"
"""The model that follows the directives of a message."""

ANSWER_SECONDS: Final = 20.0
"""Time limit of a request that is not streamed."""

_SHARE_OF_PAGES: Final = 0.5
"""The share of the resumes that are sent as web pages send them."""

_PAUSE_SECONDS: Final = 0.05
"""Wait between two attempts of a client that was refused."""


@dataclass(frozen=True, slots=True)
class Habits:
    """When readers leave a server for another one."""

    patience_seconds: tuple[float, float] = (0.3, 1.2)
    """Range of the silence after which they do."""
    taken_events: float = 40
    """Mean number of events after which they do."""


IMPATIENT: Final = Habits()


class RefusedError(RuntimeError):
    """A server answered a request with an error."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(f"{answer.url} answers {answer.status_code}: {answer.text}")
        self.earliest_seq = int(answer.json().get("earliest_seq") or 1)
        """The first event that is still stored, if the answer says so."""


class ServerClient:
    """A client of one server, which retries while that is unavailable."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str, **query: Any) -> Any:
        """Return the JSON answer of a GET. Raises RefusedError for any status but 200."""
        return (await self._answer(self.http.build_request("GET", path, params=query))).json()

    async def post(self, path: str, body: Any) -> Any:
        """Return the JSON answer of a POST. Raises RefusedError for any status but 200."""
        return (await self._answer(self.http.build_request("POST", path, json=body))).json()

    async def new_conversation(self, model: str = SCRIPTED, tools: Sequence[str] = ()) -> str:
        """Create a conversation with a new agent that has the ``tools``."""
        agent = await self.post("/v1/agents/", {"model": model, "tools": [*tools]})
        made = await self.post(f"/v1/conversations/?agent_id={agent['id']}", {})
        return str(made["id"])

    async def log_of(self, run_id: str) -> tuple[list[bytes], int]:
        """Return the stored frames of an ended run and the number of the first one."""
        path = f"/v1/runs/{run_id}/stream"

        async def replay(cursor: int) -> httpx2.Response:
            body = {"starting_after": cursor}
            return await self._answer(self.http.build_request("POST", path, json=body))

        first_seq = 1
        try:
            answer = await replay(0)
        except RefusedError as error:
            first_seq = error.earliest_seq
            answer = await replay(first_seq - 1)
        *frames, done, _ = answer.content.split(b"\n\n")
        if done != b"data: [DONE]":
            raise RuntimeError(f"The stream of {run_id} ends with {done!r} instead of [DONE].")
        return [frame + b"\n\n" for frame in frames], first_seq

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        """Repeat the request while the answer is 503. Raises RefusedError for any other error."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                answer = await self.http.send(request)
                if answer.status_code == httpx2.codes.OK:
                    return answer
                if answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                    raise RefusedError(answer)
                await asyncio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def server_clients(urls: Sequence[str], api_key: str) -> AsyncIterator[list[ServerClient]]:
    """Open a client for each of ``urls``."""
    headers = {"authorization": f"Bearer {api_key}"}
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=20)
    async with AsyncExitStack() as stack:
        yield [
            ServerClient(
                await stack.enter_async_context(
                    httpx2.AsyncClient(
                        base_url=url, headers=headers, timeout=ANSWER_SECONDS, limits=limits
                    )
                )
            )
            for url in urls
        ]


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    json: Any = None
    params: dict[str, str] | None = None
    headers: dict[str, str] | None = None


class WatchedRun:
    """The run of one message, with its sender and its other readers.

    ``on_event`` is called with the number of events in each chunk that any of them reads. With
    ``strict`` no resume may be refused, not even for now.
    """

    def __init__(
        self,
        servers: Sequence[ServerClient],
        conversation_id: str,
        text: str,
        rng: random.Random,
        *,
        name: str,
        may_lose: bool = False,
        strict: bool = False,
        habits: Habits = IMPATIENT,
        on_event: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.conversation_id = conversation_id
        self.otid = f"otid-{rng.getrandbits(64):x}"
        self.history = History(name, may_lose=may_lose)
        self.known = asyncio.Event()
        """Set once the sender has the run's id."""
        self._servers = servers
        self.text = text
        self._rng = rng
        self._strict = strict
        self._habits = habits
        self._on_event = on_event

    async def send_and_read(self, first: ServerClient | None = None) -> None:
        """Send with one OTID until a server accepts, starting at ``first``, and read to the end."""
        reader = Reader(self.history)
        server = first or self._any()
        body = {
            "messages": [{"role": "user", "content": self.text, "otid": self.otid}],
            "background": True,
            "stream_tokens": True,
        }
        path = f"/v1/conversations/{self.conversation_id}/messages"
        while not self.known.is_set():
            request = _Request("POST", path, json=body)
            await self._read(reader, server, request, may_leave=False)
            server = self._any()
        await self._follow(reader)

    async def read(self) -> None:
        """Wait until the run exists, and read it from the start."""
        await self.known.wait()
        await self._follow(Reader(self.history))

    async def _follow(self, reader: Reader) -> None:
        while not reader.done:
            path, named = self._run_reference()
            if self._rng.random() < _SHARE_OF_PAGES:
                request, form = self._by_get(path, named, reader.cursor)
            else:
                body = {**named, "starting_after": reader.cursor}
                request, form = _Request("POST", path, json=body), None
            await self._read(reader, self._any(), request, form, may_leave=True)

    def _by_get(
        self, path: str, named: dict[str, str], cursor: int
    ) -> tuple[_Request, EventStream]:
        """Return the request that an ``EventSource`` sends, and its parser."""
        run_id = None if path.startswith("/v1/runs/") else self.history.run_id
        query = {**named, "pings": self._rng.choice(["comment", "event"])}
        last_id = {"last-event-id": f"{self.history.run_id}:{cursor}"} if cursor else {}
        return _Request("GET", path, params=query, headers=last_id), EventStream(run_id)

    def _any(self) -> ServerClient:
        return self._rng.choice(self._servers)

    def _run_reference(self) -> tuple[str, dict[str, str]]:
        """Return the path and body members of one of the ways to name the run."""
        run_id = self.history.run_id
        assert run_id is not None, "the run is not known yet"
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
        self,
        reader: Reader,
        server: ServerClient,
        request: _Request,
        form: EventStream | None = None,
        *,
        may_leave: bool,
    ) -> None:
        """Read over one connection until it breaks, falls silent or has given enough events."""
        reader.reconnect()
        patience_seconds = self._rng.uniform(*self._habits.patience_seconds) if may_leave else 2.0
        left = self._rng.expovariate(1 / self._habits.taken_events) if may_leave else float("inf")
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(patience_seconds):
                    opened = server.http.stream(
                        request.method,
                        request.path,
                        json=request.json,
                        params=request.params,
                        headers=request.headers,
                    )
                    answer = await stack.enter_async_context(opened)
                    is_stream = answer.status_code == 200 and "x-run-id" in answer.headers
                    if not is_stream:
                        await answer.aread()
                if is_stream:
                    await self._take(reader, answer, form, patience_seconds, left)
                    return
            self._refused(reader, answer)
        except (httpx2.TransportError, TimeoutError):
            pass
        if not reader.done:
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _take(
        self,
        reader: Reader,
        answer: httpx2.Response,
        form: EventStream | None,
        patience_seconds: float,
        left: float,
    ) -> None:
        run_id = answer.headers["x-run-id"]
        if self.history.run_id not in {None, run_id}:
            self.history.report(Kind.DOUBLE, f"a second run {run_id}")
        self.history.run_id = run_id
        self.known.set()
        chunks = answer.aiter_raw()
        while left > 0:
            async with asyncio.timeout(patience_seconds):
                data = await anext(chunks, b"")
            if not data:
                if not reader.done and (form is None or not form.says_to_come_back):
                    self.history.report(Kind.OTHER, "a body ended properly before its [DONE]")
                return
            events = reader.feed(data if form is None else form.feed(data))
            left -= events
            self._on_event(events)

    def _refused(self, reader: Reader, answer: httpx2.Response) -> None:
        """Handle an answer that is not a stream of events."""
        if answer.status_code == httpx2.codes.OK:
            self._sent_away(answer)
            return
        error = answer.json()
        match answer.status_code:
            case httpx2.codes.SERVICE_UNAVAILABLE:
                if "retry-after" not in answer.headers:
                    self.history.report(Kind.OTHER, "a 503 without Retry-After")
                if self._strict and self.known.is_set():
                    self.history.report(Kind.OTHER, f"a resume was refused: {answer.text}")
            case httpx2.codes.BAD_REQUEST if "No active runs found" in error["detail"]:
                pass  # It has ended; another way to name it still finds it.
            case httpx2.codes.GONE if error.get("earliest_seq"):
                reader.skip_to(error["earliest_seq"] - 1)
            case httpx2.codes.GONE:
                reader.report_loss()
                reader.finish()
            case httpx2.codes.CONFLICT if error["code"] == "cursor_ahead":
                reader.report_loss()
            case status:
                self.history.report(Kind.OTHER, f"{status}: {answer.text}")
                reader.finish()

    def _sent_away(self, answer: httpx2.Response) -> None:
        """Handle the stream by which a page learns that it has to come back."""
        form = EventStream()
        if form.feed(answer.content) or not (form.says_to_come_back and form.comments == 1):
            self.history.report(Kind.OTHER, f"a stream of no run: {answer.text}")
        if self._strict:
            self.history.report(Kind.OTHER, f"a resume was refused: {answer.text}")
