"""The body of a stream: a run's frames from a cursor on, live until its end.

A plain ASGI response that works under any server. Where ``http.protocol`` lends the connection
(see ``CONNECTION_EXTENSION``), a reader that must be left is cut off at once, one that is slow is
told from one that takes nothing, and new events are written by whoever learns of them: no task is
woken for each reader.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from reattach.clock import Clock
from reattach.errors import ReattachError
from reattach.events import RunStatus
from reattach.http.errors import error_response
from reattach.ids import new_uuid
from reattach.limits import REPLAY_SLICE_EVENTS, REPLAY_TURN_BYTES
from reattach.runs.follow import Following, Target
from reattach.runs.service import RunService
from reattach.wire import letta
from reattach.wire.sse import DONE

logger = structlog.get_logger(__name__)

CONNECTION_EXTENSION: Final = "reattach.connection"
"""ASGI extension: the connection of a request, as a ``Connection``."""


class Connection(Protocol):
    """What a server lends of a connection, for the time of one response."""

    def abort(self) -> None:
        """Drop it with whatever is unsent."""

    def has_room(self) -> bool:
        """Whether a send would be taken at once."""

    def room(self) -> Awaitable[None]:
        """Return when there is room."""

    def untaken_bytes(self) -> int:
        """What was sent and the other side has not confirmed to have."""

    def write(self, body: bytes) -> None:
        """Send more of a body of unknown length, once its head was sent; nothing if it is lost."""

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Call it once when the other side is gone, or at once if it is; None calls nothing."""


_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


class RunStream(Response):
    """Streams the run from ``cursor``.

    The headers go out at once. The terminal group goes out when the run's record says how it
    ended. The body ends with ``[DONE]`` exactly when everything up to the end of the closed log
    was sent; in every other case
    (the reader takes nothing for ``stall_seconds``, the log can not be followed any longer) the
    connection is dropped without it, and the reader may resume. A reader that goes away changes
    nothing for the run.

    What ``RunService.follow`` raises is answered as the error that it is, instead of a stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        runs: RunService,
        target: Target,
        clock: Clock,
        *,
        cursor: int = 0,
        max_events: int = REPLAY_SLICE_EVENTS,
        include_pings: bool,
        stall_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._runs = runs
        self._target = target
        self._clock = clock
        self._cursor = cursor
        self._max_events = max_events
        self._include_pings = include_pings
        self._stall_seconds = stall_seconds
        self._extra_headers = headers or {}
        self._gone = False
        self._connection: Connection | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            following = self._runs.follow(self._target, self._cursor, max_events=self._max_events)
            try:
                reader = await stack.enter_async_context(following)
            except ReattachError as error:
                await error_response(error)(scope, receive, send)
                return
            await self._stream(reader, scope, receive, send)

    async def _stream(
        self, following: Following, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._connection = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        await send(self._start(following))
        async with (
            self._noticing(receive, following),
            self._runs.watch.watching(following, pings=self._include_pings),
        ):
            complete = await self._deliver(following, send)
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self._gone:
            await self._abort(receive)

    def _start(self, following: Following) -> dict[str, object]:
        status = self._target.status
        if status is RunStatus.CREATED:  # Its log is open by now.
            status = RunStatus.RUNNING
        headers = {
            **_HEADERS,
            "x-run-id": self._target.run_id,
            "x-run-status": status.value,
            "x-stream-starts-after": str(following.cursor),
            **self._extra_headers,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": raw}

    @asynccontextmanager
    async def _noticing(self, receive: Receive, following: Following) -> AsyncIterator[None]:
        """Notice that the reader went away: a send after that does not tell."""

        def left() -> None:
            self._gone = True
            following.wake.set()

        if self._connection is not None:
            self._connection.when_left(left)
            try:
                yield
            finally:
                self._connection.when_left(None)
            return

        async def listen() -> None:
            await _left(receive)
            left()

        listener = asyncio.create_task(listen())
        try:
            yield
        finally:
            listener.cancel()

    async def _deliver(self, following: Following, send: Send) -> bool:
        """Send until the end; True if everything was sent, ``[DONE]`` included."""
        sent_bytes = 0
        while not self._gone:
            following.wake.clear()
            try:
                piece = await following.read()
            except ReattachError as error:
                return self._cut_off(error.detail)
            # Before the terminal group, as the SDKs stop at an error event and see no [DONE].
            if following.closed and not await self._runs.ending_told(self._target):
                return self._cut_off("the record does not say yet how the run ended")
            if piece.frames:
                if not await self._send(following, send, piece.frames):
                    return False
                sent_bytes += len(piece.frames)
                if sent_bytes >= REPLAY_TURN_BYTES:
                    sent_bytes = 0
                    await asyncio.sleep(0)
            elif following.failure is not None:
                return self._cut_off(following.failure.detail)
            elif following.released:
                return self._cut_off("the server is going away, and another one has the run")
            elif following.closed:
                return await self._send(following, send, DONE)
            elif following.keepalive_due:
                ping = letta.keepalive(
                    f"ping-{new_uuid()}", self._clock.now(), following.cursor, self._target.run_id
                )
                if not await self._send(following, send, ping):
                    return False
            else:
                await self._wait(following)
        return False

    async def _wait(self, following: Following) -> None:
        """Until there is something to do beside writing what is new."""
        if self._connection is not None:
            following.sink = self._push
        try:
            await following.wake.wait()
        finally:
            following.sink = None

    def _push(self, frames: bytes) -> bool:
        assert self._connection is not None
        if self._gone or not self._connection.has_room():
            return False
        self._connection.write(frames)
        return True

    async def _send(self, following: Following, send: Send, body: bytes) -> bool:
        following.quiet_since = None
        message = {"type": "http.response.body", "body": body, "more_body": True}
        try:
            if self._connection is not None:
                await self._room(self._connection)
                await send(message)
            else:
                async with asyncio.timeout(self._stall_seconds):
                    await send(message)
        except TimeoutError:
            return self._cut_off(f"took nothing for {self._stall_seconds} seconds")
        following.keepalive_due = False
        following.quiet_since = asyncio.get_running_loop().time()
        return True

    async def _room(self, connection: Connection) -> None:
        """Wait until there is room; raises TimeoutError if nothing is taken for the stall time."""
        if connection.has_room():
            return
        untaken_bytes = connection.untaken_bytes()
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await connection.room()
            except TimeoutError:
                before_bytes, untaken_bytes = untaken_bytes, connection.untaken_bytes()
                if untaken_bytes >= before_bytes:
                    raise
            else:
                return

    def _cut_off(self, reason: str) -> bool:
        logger.info("reader cut off", run_id=self._target.run_id, reason=reason)
        return False

    async def _abort(self, receive: Receive) -> None:
        """Drop the connection, so that the reader can not take the cut for the answer's end."""
        if self._connection is not None:
            self._connection.abort()
            await _left(receive)


async def _left(receive: Receive) -> None:
    """Return when the reader went away."""
    while (await receive())["type"] != "http.disconnect":
        pass
