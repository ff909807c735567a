"""Connections of the server to a small application, whose time a test moves on by itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.http.connection.capacity import Capacity
from reattach.http.connection.protocol import Endpoint, HttpConnection, encode_error
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import State, Timeouts
from reattach.http.connection.watch import Watch
from reattach.http.stream.body import CONNECTION_EXTENSION, Connection
from reattach.server.acceptor import Acceptor, Address

WAIT_SECONDS: Final = 20.0
STALL_SECONDS: Final = 30.0
CLOSE: Final = b"Connection: close\r\n"


@dataclass
class Exchange:
    """A request as the application had it."""

    method: str
    path: str
    query: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    disconnected: bool = False


@dataclass
class Application:
    """Answers with JSON; its paths say how.

    ``/early`` answers before it reads, ``/wait`` once the gate is open, ``/stream`` keeps the
    connection, ``/large`` sends 4 MB, ``/crash`` and ``/half`` raise before and in the answer.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    kept: Connection | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(
            scope["method"],
            scope["path"],
            scope["query_string"].decode(),
            scope["http_version"],
            [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]],
        )
        self.began.set()
        if scope["path"] == "/crash":
            raise LookupError
        if scope["path"] != "/early" and not await self._read(exchange, receive):
            self.left.set()
            return
        self.exchanges.append(exchange)
        if scope["path"] == "/stream":
            await self._keep(scope, send)
            return
        if scope["path"] == "/wait":
            await self.gate.wait()
        body = b"x" * 4_000_000 if scope["path"] == "/large" else json.dumps(exchange.path).encode()
        await send(_start(len(body)))
        if scope["path"] == "/half":
            await send({"type": "http.response.body", "body": body[:1], "more_body": True})
            raise LookupError
        await send({"type": "http.response.body", "body": body})

    async def _read(self, exchange: Exchange, receive: Receive) -> bool:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.disconnected = True
                return False
            exchange.body += message["body"]
            if not message["more_body"]:
                return True

    async def _keep(self, scope: Scope, send: Send) -> None:
        connection: Connection = scope["extensions"][CONNECTION_EXTENSION]
        start = {"type": "http.response.start", "status": 200, "headers": [(b"x-run", b"1")]}
        await connection.begin(send, start)
        connection.detach()
        connection.on_disconnect(self.left.set)
        connection.write(b"first ")
        self.kept = connection


def _start(length: int) -> Message:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {"type": "http.response.start", "status": 200, "headers": headers}


NEXT: Final[Mapping[State, frozenset[State]]] = {
    # HEAD to HEAD: the first byte arrived, and the deadline restarts.
    State.HEAD: frozenset({State.HEAD, State.BODY, State.RESPONSE, State.DRAINING, State.CLOSED}),
    # BODY to BODY: more arrived. To DETACHED and IDLE: the response ended before the request did.
    State.BODY: frozenset(
        {State.BODY, State.RESPONSE, State.DETACHED, State.IDLE, State.DRAINING, State.CLOSED}
    ),
    State.RESPONSE: frozenset({State.DETACHED, State.IDLE, State.DRAINING, State.CLOSED}),
    State.DETACHED: frozenset({State.IDLE, State.DRAINING, State.CLOSED}),
    State.IDLE: frozenset({State.HEAD, State.BODY, State.RESPONSE, State.DRAINING, State.CLOSED}),
    State.DRAINING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}
"""The states that may follow each state."""


class Followed(HttpConnection):
    """A connection whose states are looked at: each must be one that may follow the last."""

    def _enter(self, state: State) -> None:
        assert state in NEXT[self.state], (self.state, state)
        super()._enter(state)


class Client:
    """One socket, as bare as a client can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def end(self) -> None:
        """Send nothing more, and go on reading."""
        self.writer.write_eof()

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """The bytes that arrive until the server closes or resets the connection."""
        received = b""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except ConnectionError:
                pass
        return received

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass
class Served:
    """A listening server. Its time passes only in ``pass_time``."""

    application: Application
    watch: Watch
    capacity: Capacity
    state: ServerState
    address: Address
    time: list[float]
    clients: list[Client] = field(default_factory=list)

    async def connect(self, *said: bytes, receive_bytes: int | None = None) -> Client:
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(connection, self.address)
        limit = 64 * 1024 if receive_bytes is None else 1024
        client = Client(*await asyncio.open_connection(sock=connection, limit=limit))
        self.clients.append(client)
        await client.say(*said)
        return client

    async def exchange(self, *said: bytes, ends: bool = False) -> bytes:
        client = await self.connect(*said)
        if ends:
            client.end()
        return await client.rest()

    def pass_time(self, seconds: float) -> None:
        self.time[0] += seconds
        self.watch.look()

    async def until_state(self, *states: State) -> None:
        """Return when the connections are in these states."""
        wanted = sorted(state.value for state in states)
        async with asyncio.timeout(WAIT_SECONDS):
            while sorted(one.state.value for one in self.state.connections) != wanted:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def served(most: int = 1000, each: int = 1000) -> AsyncIterator[Served]:
    time = [1000.0]
    watch = Watch(Timeouts(STALL_SECONDS), lambda: time[0])
    capacity = Capacity(watch, most, each)
    application, state = Application(), ServerState()
    endpoint = Endpoint(application, state, watch, capacity)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    listener.setblocking(False)

    def admit(address: Address) -> bytes | None:
        try:
            capacity.admit(address[0])
        except TooManyConnectionsError as error:
            return encode_error(error)
        return None

    acceptor = Acceptor(
        listener,
        lambda client: Followed(endpoint, client),
        admit=admit,
        release=lambda address: capacity.leave(address[0]),
    )
    acceptor.start()
    server = Served(application, watch, capacity, state, listener.getsockname(), time)
    try:
        yield server
    finally:
        acceptor.close()
        application.gate.set()
        for client in server.clients:
            client.close()
        for connection in list(state.connections):
            connection.abort()
        async with asyncio.timeout(WAIT_SECONDS):
            while state.connections or state.tasks:
                await asyncio.sleep(0.001)
        listener.close()
