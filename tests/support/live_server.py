"""A whole server on a loopback port of the test's own event loop, whose engine a test holds back.

httpx's ASGI transport gives a body only when it is whole, so what streams is tested over sockets.
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import httpx2
import pytest
from starlette.types import ASGIApp, Message

from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.engine.base import Turn
from reattach.engine.scripted import ScriptedEngine
from reattach.http.app import create_app
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.server.listener import listen
from reattach.server.process import _Server
from reattach.settings import Settings
from tests.support.asgi_server import Server, TestClock
from tests.support.event_stream import EventStream, query_of
from tests.support.records_files import prepare_records

WAIT_SECONDS: Final = 20.0
"""Bound of every wait: far beyond what any of them takes on a busy machine."""

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Frame:
    """One frame as it came, its two line ends included."""

    raw: bytes

    @property
    def event(self) -> dict[str, Any]:
        """Decode the event. Fails unless the frame has exactly the protocol's form."""
        head, separator, data = self.raw.partition(b"data: ")
        assert separator, self.raw
        assert data.endswith(b"\n\n"), self.raw
        event: dict[str, Any] = json.loads(data)
        is_error = event["message_type"] == "error_message"
        assert head == (b"event: error\n" if is_error else b""), self.raw
        return event

    @property
    def kind(self) -> str:
        """``message_type``, or ``[DONE]``."""
        return "[DONE]" if self.raw == DONE else str(self.event["message_type"])

    @property
    def seq(self) -> int | None:
        seq: int | None = self.event["seq_id"]
        return seq


class Stream:
    """A stream that is being read, frame by frame."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.status_code = response.status_code
        self.headers = response.headers
        self.ids: EventStream | None = None
        """The state that an ``EventSource`` keeps, if this stream was opened by GET."""
        self._chunks = response.aiter_raw()
        self._buffer = b""
        if response.request.method == "GET" and response.status_code == 200:
            named = response.request.url.path.startswith("/v1/conversations/")
            self.ids = EventStream(self.run_id if named else None)

    @property
    def run_id(self) -> str:
        return str(self.headers["x-run-id"])

    async def next(self) -> Frame:
        """The next frame. Raises EOFError at the end of the body, TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS):
            while b"\n\n" not in self._buffer:
                try:
                    data = await anext(self._chunks)
                except StopAsyncIteration:
                    assert self._buffer == b"", self._buffer
                    assert self.ids is None or self.ids.is_between_frames
                    raise EOFError from None
                self._buffer += data if self.ids is None else self.ids.feed(data)
        raw, _, self._buffer = self._buffer.partition(b"\n\n")
        return Frame(raw + b"\n\n")

    async def until(self, kind: str) -> list[Frame]:
        """The frames up to and with the first of this kind."""
        frames = [await self.next()]
        while frames[-1].kind != kind:
            frames.append(await self.next())
        return frames

    async def rest(self) -> list[Frame]:
        """Every frame up to the end of the body."""
        frames = []
        while True:
            try:
                frames.append(await self.next())
            except EOFError:
                return frames

    async def error(self) -> dict[str, Any]:
        """The body, if this is no stream."""
        await self.response.aread()
        body: dict[str, Any] = self.response.json()
        return body


def joined(frames: list[Frame]) -> bytes:
    return b"".join(frame.raw for frame in frames)


def kinds(frames: list[Frame]) -> list[str]:
    return [frame.kind for frame in frames]


def text(frames: list[Frame]) -> str:
    """Join the assistant's text."""
    events = [frame.event for frame in frames if frame.kind == "assistant_message"]
    return "".join(event["content"] for event in events)


class Gates:
    """Holds back the deltas of the turns of an agent until they are let through."""

    def __init__(self) -> None:
        self._allowed: dict[str, float] = {}
        self._waiting: dict[str, float] = {}
        self._changed = asyncio.Event()

    async def __call__(self, turn: Turn, number: int) -> None:
        while number >= self._allowed.get(turn.agent_id, math.inf):
            if self._waiting.get(turn.agent_id) != number:  # Else two held runs wake each other.
                self._waiting[turn.agent_id] = number
                self._change()
            await self._changed.wait()

    def hold(self, agent_id: str, after: float = 0) -> None:
        """Let this many deltas of each turn of the agent through, and no more."""
        self._allowed[agent_id] = after
        self._change()

    def open(self, agent_id: str) -> None:
        self.hold(agent_id, math.inf)

    async def reached(self, agent_id: str, number: int) -> None:
        """Return when delta ``number`` (from 0) of a turn of the agent is waiting."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self._waiting.get(agent_id) != number:
                await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class LiveServer(Server):
    """A server that listens."""

    gates: Gates
    url: str
    directory: Path
    keys: dict[TenantId, str] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx2.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Any = None,
        *,
        client: httpx2.AsyncClient | None = None,
        method: str = "POST",
        **more: Any,
    ) -> AsyncIterator[Stream]:
        """POST ``body`` as JSON, and read what streams back. Leaving closes the connection.

        GET sends the members as the query; keepalives are asked for as events.
        """
        async with asyncio.timeout(WAIT_SECONDS * 3):
            if method == "GET":
                options = {"params": {"pings": "event", **query_of(body)}, **more}
            else:
                options = more if body is None else {"json": body, **more}
            async with (client or self.client).stream(method, path, **options) as response:
                yield Stream(response)

    async def streamed(self, path: str, body: Any = None, **more: Any) -> list[Frame]:
        """The whole stream; fails unless it is one and ends with ``[DONE]``."""
        async with self.stream(path, body, **more) as stream:
            assert stream.status_code == 200, await stream.error()
            frames = await stream.rest()
        assert frames[-1].kind == "[DONE]"
        assert kinds(frames).count("[DONE]") == 1
        return frames

    async def background_run(self, thread_id: str, message: str, /, **body: Any) -> str:
        """Send in the background, leave at once, and return the run's id."""
        async with self.stream(
            to(thread_id), message_body(message, background=True, **body)
        ) as stream:
            assert stream.status_code == 200, await stream.error()
            return stream.run_id

    async def held_run(
        self, agent_id: str, thread_id: str, message: str, /, *, after: int, **body: Any
    ) -> str:
        """A background run that waits before its delta number ``after``, with its log up to it."""
        self.gates.hold(agent_id, after)
        run_id = await self.background_run(thread_id, message, **body)
        await self.gates.reached(agent_id, after)
        await self.logged(run_id)
        return run_id

    async def logged(self, run_id: str) -> None:
        """Return when the log has all that the run has said so far."""
        writer = self.context.runs.open_runs.drivers[run_id]._output.writer
        async with asyncio.timeout(WAIT_SECONDS):
            await writer.flush()

    async def ended(self, run_id: str) -> dict[str, Any]:
        """Open the gate of the run's agent, wait for its end, and return it."""
        run: dict[str, Any] = await self.got(f"/v1/runs/{run_id}")
        self.gates.open(run["agent_id"])
        async with asyncio.timeout(WAIT_SECONDS):
            runs = self.context.runs
            await runs.wait_until_settled(await runs.by_id(DEFAULT_TENANT, run_id))
        return await self.run(run_id)

    async def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = await self.got(f"/v1/runs/{run_id}")
        return run

    async def run_ids(self, **query: Any) -> list[str]:
        return [run["id"] for run in await self.got("/v1/runs/", limit=1000, **query)]

    async def contents(self, thread_id: str, **query: Any) -> list[tuple[str, Any]]:
        """List the stored messages of a conversation, oldest first, without its system message."""
        items = await self.got(
            f"/v1/conversations/{thread_id}/messages", order="asc", limit=1000, **query
        )
        return [
            (item["message_type"], item.get("content", item.get("reasoning")))
            for item in items
            if item["message_type"] != "system_message"
        ]

    async def as_tenant(self, tenant: TenantId) -> httpx2.AsyncClient:
        """A client with a key of the tenant; from the first one on the server wants keys."""
        if tenant not in self.keys:
            _, self.keys[tenant] = await self.context.records.keys.create(tenant, "test")
            self.clock.skipped_seconds += KEY_CACHE_SECONDS
        return _client(self.url, {"Authorization": f"Bearer {self.keys[tenant]}"})

    def rows(self) -> Mapping[str, int]:
        """How many rows each table of the records has."""
        file = datadir.records_file(self.directory)
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for (name,) in tables.fetchall()
            }


async def new_threads(live: LiveServer, **body: Any) -> tuple[str, str]:
    """A new agent, made with ``body``, and a named conversation with it."""
    agent = (await live.agent(**body))["id"]
    return agent, (await live.conversation(agent))["id"]


async def thread_with(live: LiveServer, *tools: str) -> tuple[str, str]:
    """A new agent that has the tools, its gate open, and a named conversation with it."""
    agent, thread = await new_threads(live, tools=tools)
    live.gates.open(agent)
    return agent, thread


async def sent(live: LiveServer, thread_id: str, message: str, **body: Any) -> list[Frame]:
    """Send in the background, and read the whole stream."""
    return await live.streamed(to(thread_id), {"input": message, "background": True, **body})


def to(thread_id: str) -> str:
    return f"/v1/conversations/{thread_id}/messages"


def message_body(message: str, **body: Any) -> dict[str, Any]:
    """The JSON body that sends one message, with its ``otid`` and the options in ``body``."""
    item = {"role": "user", "content": message}
    if "otid" in body:
        item["otid"] = body.pop("otid")
    return {"messages": [item], "stream_tokens": True, **body}


@dataclass
class HeldSettlements:
    """The ends of runs, whose records wait until they may ``go_on``."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first of them waits."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


def hold_settlements(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> HeldSettlements:
    """Hold the record of the end of every run that ends from now on."""
    held = HeldSettlements()
    settle = live.context.records.runs.settle

    async def settle_late(*arguments: Any) -> bool:
        held.reached.set()
        await held.go_on.wait()
        return await settle(*arguments)

    monkeypatch.setattr(live.context.records.runs, "settle", settle_late)
    return held


async def posted_directly(
    app: ASGIApp,
    path: str,
    body: bytes,
    *,
    authorization: str | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> list[Message]:
    """POST JSON without a socket between, and return what the application sends, write by write.

    An answer that streams is read to its end. ``more`` are further members of the ASGI scope.
    """
    received: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not received:
            await asyncio.Event().wait()
        return received.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    if authorization is not None:
        headers.append((b"authorization", authorization.encode()))
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
        **more,
    }
    async with asyncio.timeout(WAIT_SECONDS):
        await app(scope, receive, send)
    return sent


def _client(url: str, headers: Mapping[str, str] | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=WAIT_SECONDS,
        follow_redirects=True,
        verify=False,  # To read the certificates of authorities takes longer than most tests.
        limits=httpx2.Limits(max_connections=None),
    )


class InLoop(_Server):
    """The production server without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @asynccontextmanager
    async def running(self, settings: Settings, *, drains: bool) -> AsyncIterator[Self]:
        listener = listen(settings.host, settings.port)
        self._url = "http://{}:{}".format(*listener.getsockname())
        ready = asyncio.Event()
        self._on_ready = lambda url: ready.set()
        task = asyncio.create_task(self.serve(listener), name="serve")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await ready.wait()
            yield self
        finally:
            if drains:  # As a signal does: streams that were left open end with their runs.
                await self._context.runs.drain(0)
            self.stop()
            await asyncio.wait({task}, timeout=WAIT_SECONDS)
            listener.close()


@asynccontextmanager
async def listening(
    directory: Path, *, drains: bool = True, **settings: Any
) -> AsyncIterator[LiveServer]:
    """Serve on a free port, from real files in ``directory``, with the scripted engine.

    Unless it drains, its open runs get their ends only when nothing else of it is left.
    """
    options = Settings(data_dir=directory, port=0, default_model="scripted/echo", **settings)
    await prepare_records(datadir.records_file(directory))
    clock, gates = TestClock(), Gates()
    engine = ScriptedEngine(clock=clock, gate=gates)
    async with assemble(options, engines=[engine], clock=clock) as context:
        server = InLoop(context, "", None)
        async with server.running(options, drains=drains), _client(server._url) as client:
            yield LiveServer(
                context,
                create_app(context),
                clock,
                client,
                gates,
                server._url,
                directory,
            )
