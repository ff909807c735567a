"""Readers in this process, which drive the real response without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.types import Message, Send

from reattach.domain.clock import SystemClock
from reattach.http.stream.body import CONNECTION_EXTENSION
from reattach.http.stream.framing import LETTA, EventSourceFraming
from reattach.http.stream.response import RunStream
from reattach.records.base import Run
from reattach.runs.following.follow import Target
from reattach.runs.service import RunService
from reattach.wire.event_source import EventIds
from tests.support.event_stream import EventStream
from tests.support.received import Received

WAIT_SECONDS = 10.0


class Reader:
    """A client that reads the stream of ``run`` within its context.

    Clear ``taking`` to let it read nothing. ``aborted`` says that its connection was dropped. With
    ``by_get`` it reads the form for ``EventSource``, and ``received`` has the frames without ids.
    """

    def __init__(
        self,
        service: RunService,
        run: Run | Target,
        cursor: int = 0,
        *,
        pings: bool = False,
        by_get: bool = False,
    ) -> None:
        self.ids = EventStream() if by_get else None
        self._stream = RunStream(
            service,
            run if isinstance(run, Target) else Target.of(run),
            SystemClock(),
            cursor=cursor,
            include_pings=pings,
            stall_seconds=30.0,
            framing=EventSourceFraming(EventIds(), pings=True) if by_get else LETTA,
        )
        self.received = Received(cursor)
        self.status = 0
        self.error: dict[str, Any] = {}
        """The body, if the status is not 200."""
        self.headers: dict[str, str] = {}
        self.aborted = False
        self.whole = False
        """Whether the body ended properly."""
        self.taking = asyncio.Event()
        self.taking.set()
        self.on_disconnect: Callable[[], None] | None = None
        self.connection = _Connection(self)
        self._changed = asyncio.Event()
        self._left = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
        self.taking.set()
        await asyncio.wait({self._task}, timeout=WAIT_SECONDS)
        if not self._task.done():
            self._task.cancel()
            raise AssertionError("The response continues after its reader has left.")

    def leave(self) -> None:
        """Disconnect as a client does."""
        self._left.set()
        if self.on_disconnect is not None:
            self.on_disconnect()

    def stall(self) -> None:
        """Let the server's watch drop the connection as stalled."""
        self.connection.stalled = True
        self.abort()

    def abort(self) -> None:
        """Drop the connection as the server does."""
        self.aborted = self.aborted or not self._left.is_set()
        self.leave()

    def take(self, body: bytes) -> None:
        """Receive a chunk of the body."""
        self.received.feed(body if self.ids is None else self.ids.feed(body))
        self._changed.set()

    def die(self) -> None:
        """Stop at once, as if the server process died."""
        self._task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, and check it after every change."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                if self._task.done():
                    self._task.result()
                    assert condition(), "the stream has ended"
                    return
                self._changed.clear()
                await self._changed.wait()

    async def until_seq(self, seq: int) -> None:
        await self.until(lambda: self.received.cursor >= seq)

    async def to_end(self) -> Received:
        """Wait for the end of the response. Raises what it raised before its headers."""
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.shield(self._task)
        return self.received

    async def _read(self) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "headers": [],
            "extensions": {CONNECTION_EXTENSION: self.connection},
        }
        try:
            await self._stream(scope, self._receive, self._send)
            if self.status == 200:
                await self.connection.over.wait()
        finally:
            self._changed.set()

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        elif self.status != 200:
            self.error |= msgspec.json.decode(message["body"])
        self._changed.set()


class _Connection:
    """The server's side of the reader's connection, without a buffer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.over = asyncio.Event()
        self.stalled = False
        self._when_room: Callable[[], None] | None = None

    async def begin(self, send: Send, start: Message) -> None:
        await send(start)

    def detach(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def finish(self, *rest: bytes) -> None:
        self._reader.take(b"".join(rest))
        self._reader.whole = True
        self.over.set()

    def abort(self) -> None:
        self._reader.abort()
        self.over.set()

    def is_writable(self) -> bool:
        return self._reader.taking.is_set()

    def on_writable(self, call: Callable[[], None] | None) -> None:
        self._when_room = call
        if call is not None:
            self._waiting = asyncio.create_task(self._room())

    async def _room(self) -> None:
        await self._reader.taking.wait()
        if self._when_room is not None:
            self._when_room()

    def write(self, *body: bytes) -> None:
        self._reader.take(b"".join(body))

    def try_write(self, body: bytes) -> bool:
        if self._reader._left.is_set() or not self.is_writable():
            return False
        self.write(body)
        return True

    def on_disconnect(self, call: Callable[[], None] | None) -> None:
        self._reader.on_disconnect = call


@asynccontextmanager
async def a_thousand_of_each(service: RunService, run: Run | Target) -> AsyncIterator[list[Reader]]:
    """Open a thousand readers in each form of the stream of a run that waits after event 2.

    Fails if the server has a task for a reader that waits.
    """
    async with AsyncExitStack() as stack:
        for by_get in (False, True):
            async with Reader(service, run, by_get=by_get) as first:
                await first.until_seq(2)
                tasks = len(asyncio.all_tasks())
        readers = [
            await stack.enter_async_context(Reader(service, run, by_get=bool(number % 2)))
            for number in range(2000)
        ]
        for reader in readers:
            await reader.until_seq(2)
        # Each of these readers has a task of its own, and the server has none for it. It may be at
        # some work of its own just now.
        assert len(asyncio.all_tasks()) <= tasks + len(readers) + 20
        yield readers


async def assert_whole(readers: Sequence[Reader], frames: list[bytes]) -> None:
    """Assert that each reader gets the whole run, with its frames, and its end."""
    for reader in readers:
        received = await reader.to_end()
        assert received.done
        assert received.frames == frames
        assert reader.ids is None or reader.ids.done
