"""The connection as an asyncio protocol: parses requests, runs the application, enforces deadlines.

``states`` has the rules, and ``server_state`` what all connections share.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import structlog
from starlette.types import ASGIApp

from reattach.domain.errors import ReattachError
from reattach.domain.errors.connection import RequestTimeoutError
from reattach.domain.limits import CHUNKS_SLICE_BYTES, HELD_BYTES, MAX_REQUEST_BYTES
from reattach.http.connection.body import Body, ChunkedBody, LengthBody
from reattach.http.connection.cycle import Cycle, Headers, response_head
from reattach.http.connection.head import Head
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import State
from reattach.http.connection.watch import Queue, Watch
from reattach.http.errors import error_response
from reattach.http.stream.body import Piece
from reattach.meters.meters import Meters
from reattach.sockets import unacknowledged_bytes

logger = structlog.get_logger(__name__)

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
_TCP_CLOSE: Final = 7


class Counted(Protocol):
    """The count of connections to which one belongs."""

    def leave(self, address: str) -> None:
        """Stop counting a connection from the address."""


class Instant(Protocol):
    """Answers some requests in the callback that reads them, without the application."""

    def answer(
        self,
        data: bytes,
        client: tuple[str, int],
        server: tuple[str, int] | None,
        default_headers: Headers,
    ) -> tuple[bytes, int] | None:
        """Return the whole response to the request that ``data`` begins with, and its length.

        The connection stays open after it. None: the application answers.
        """


@dataclass(frozen=True, slots=True)
class Endpoint:
    """State shared by all connections of a server."""

    app: ASGIApp
    state: ServerState
    watch: Watch
    capacity: Counted
    meters: Meters = field(default_factory=Meters)
    instant: Instant | None = None


class HttpConnection(asyncio.Protocol):
    """One connection. ``client`` is the address and port of the client."""

    __slots__ = ("_body", "_body_until", "_client", "_cycle", "_discarded_bytes", "_endpoint",
                 "_head", "_held", "_is_resuming", "_queue", "_reads", "_room", "_server",
                 "_transport", "half_closed", "has_unread", "read_bytes", "sent_bytes",
                 "stalled", "state", "stuck_since", "write_paused")  # fmt: skip

    def __init__(self, endpoint: Endpoint, client: tuple[str, int]) -> None:
        self._endpoint = endpoint
        self._client = client
        self._server: tuple[str, int] | None = None
        self._transport: asyncio.Transport
        self._head: Head | None = None
        """The head that is being parsed."""
        self._body: Body | None = None
        """The body that is being parsed."""
        self._body_until = 0.0
        self._cycle: Cycle | None = None
        """The latest request with a complete head."""
        self._held = b""
        """Bytes that arrived and are not parsed yet."""
        self._reads = True
        self._room: asyncio.Event | None = None
        self._queue: Queue | None = None
        self._discarded_bytes = 0
        self.state = State.HEAD
        self.write_paused = False
        self._is_resuming = False
        self.half_closed = False
        self.stalled = False
        """The connection was aborted because the client read nothing."""
        self.sent_bytes = 0
        self.read_bytes = 0
        self.stuck_since: float | None = None
        self.has_unread = False

    @property
    def default_headers(self) -> Headers:
        return self._endpoint.state.default_headers

    @property
    def _awaits_input(self) -> bool:
        state = self.state
        return state is State.IDLE or state is State.BODY or state is State.HEAD

    def _enter(self, state: State) -> None:
        """Enter a state, or stay in it and restart its deadline."""
        self._leave_queue()
        self.state = state
        if state is State.RESPONSE or state is State.DETACHED or state is State.CLOSED:
            return
        self._queue = self._endpoint.watch.queue(self, state)

    def _leave_queue(self) -> None:
        if self._queue is not None:
            self._queue.pop(self, None)
            self._queue = None

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("sockname")
        self._server = (name[0], name[1]) if isinstance(name, tuple) else None
        self._endpoint.state.connections.add(self)
        self._enter(State.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._endpoint.state.connections.discard(self)
        self._endpoint.meters.sent_bytes += self.sent_bytes
        self._endpoint.watch.forget(self)
        self._endpoint.capacity.leave(self._client[0])
        self._enter(State.CLOSED)
        self._head = self._body = None
        self._held = b""
        self.write_paused = False
        if self._room is not None:
            self._room.set()
        cycle, self._cycle = self._cycle, None
        if cycle is not None and not cycle.complete:
            cycle.disconnect()

    def data_received(self, data: bytes) -> None:
        if self._held or self.state is State.RESPONSE or self.state is State.DETACHED:
            self._held += data
            if len(self._held) > HELD_BYTES:
                self.pause_reading()
        elif self.state is State.DRAINING:
            self._discard(len(data))
        elif self.state is not State.CLOSED:
            self._read(data)

    def eof_received(self) -> bool:
        """Return whether the connection stays open, so that the client can read its response."""
        self.half_closed = True
        if self._held or self.state is State.RESPONSE or self.state is State.DETACHED:
            self._endpoint.watch.watch_output(self)  # Nothing else would detect its death.
            if self._cycle is not None:
                self._cycle.notify_half_close()
            return True
        self._end_of_input()
        return False

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._room is not None:
            self._room.set()
            self._room = None
        if self._cycle is not None:
            self._is_resuming = True
            try:
                self._cycle.notify_writable()
            finally:
                self._is_resuming = False

    # Called by the server.

    def shutdown(self) -> None:
        """Close as soon as the current response is complete."""
        if self._cycle is None or self._cycle.complete:
            self.close()
        else:
            self._cycle.keep_alive = False

    # Reading.

    def _read(self, data: bytes) -> None:
        """Parse data up to the end of a request."""
        if len(data) > CHUNKS_SLICE_BYTES and not isinstance(self._body, LengthBody):
            data, self._held = data[:CHUNKS_SLICE_BYTES], data[CHUNKS_SLICE_BYTES:]
            self.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_held)
        rest: bytes | None = data
        try:
            while rest:
                if self.state is State.BODY:
                    rest = self._read_body(rest)
                elif self.state is State.HEAD or self.state is State.IDLE:
                    rest = self._read_head(rest)
                else:
                    self._held = rest + self._held
                    return
        except ReattachError as error:
            self._refuse(error)

    def _read_held(self) -> None:
        """Parse data that was held back, unless the previous request is still unanswered."""
        if self._held and self._awaits_input:
            data, self._held = self._held, b""
            self.resume_reading()
            self._read(data)
        if self.half_closed and not self._held and self._awaits_input:
            self._end_of_input()
            self.close()

    def _end_of_input(self) -> None:
        """Handle the end of input in the middle of a request."""
        if self._cycle is not None:
            self._cycle.disconnect()

    def _read_head(self, data: bytes) -> bytes | None:
        head = self._head
        if head is None:
            rest = self._answer_at_once(data)
            if rest is not None:
                return rest
            head = self._head = Head()
        had_begun = head.has_begun
        rest = head.feed(data)
        if rest is None:
            if head.has_begun and not had_begun:
                self._enter(State.HEAD)
            return None
        self._head = None
        self._begin(head)
        if not rest:
            self.expect_body()
        return rest

    def _answer_at_once(self, data: bytes) -> bytes | None:
        """Answer the request that ``data`` begins with, and return the bytes after it.

        None if that is not possible.
        """
        endpoint = self._endpoint
        if endpoint.instant is None or self.write_paused or self._transport.is_closing():
            return None
        answered = endpoint.instant.answer(
            data, self._client, self._server, endpoint.state.default_headers
        )
        if answered is None:
            return None
        response, length = answered
        self._cycle = None
        self._enter(State.IDLE)
        self.write(response)
        return data[length:]

    def _begin(self, head: Head) -> None:
        """Run the application for a request with a complete head."""
        endpoint = self._endpoint
        cycle = self._cycle = Cycle(self, head, self._server, self._client)
        task = asyncio.get_running_loop().create_task(cycle.run(endpoint.app))
        endpoint.state.tasks.add(task)
        task.add_done_callback(endpoint.state.tasks.discard)
        if head.chunked or head.content_length:
            self._body = ChunkedBody() if head.chunked else LengthBody(head.content_length)
            self._body_until = endpoint.watch.now() + endpoint.watch.timeouts.body_seconds
            self._discarded_bytes = 0
            self.state = State.BODY
        else:
            cycle.feed_body(b"", whole=True)
            self._enter(State.RESPONSE)

    def _read_body(self, data: bytes) -> bytes | None:
        body, cycle = self._body, self._cycle
        assert body is not None
        assert cycle is not None
        piece, rest = body.feed(data)
        cycle.feed_body(piece, whole=rest is not None)
        if rest is None:
            if self._endpoint.watch.now() > self._body_until:
                raise RequestTimeoutError
            if cycle.complete:
                self._discard(len(data))
            self.expect_body()
        else:
            self._body = None
            if cycle.complete:
                self._go_idle()
            else:
                self._enter(State.DETACHED if cycle.is_detached else State.RESPONSE)
        return rest

    def expect_body(self) -> None:
        """Restart the deadline for more of the body, while the application reads it."""
        if self.state is State.BODY and self._cycle is not None:
            if self._reads and not self._cycle.waits_for_continue:
                self._enter(State.BODY)
            else:
                self._leave_queue()

    def _discard(self, count: int) -> None:
        self._discarded_bytes += count
        if self._discarded_bytes > MAX_REQUEST_BYTES:
            self.close()

    def pause_reading(self) -> None:
        if self._reads:
            self._reads = False
            if not (self.half_closed or self._transport.is_closing()):
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reads and not self._held:
            self._reads = True
            if not (self.half_closed or self._transport.is_closing()):
                self._transport.resume_reading()
            self.expect_body()

    def _refuse(self, error: ReattachError) -> None:
        """Answer a request that cannot be read completely with an error, if possible."""
        cycle, self._cycle = self._cycle, None
        self._head = self._body = None
        if cycle is not None and not cycle.complete:
            cycle.disconnect()
            if cycle.started:
                self.close()  # Without the end of the body, so the client sees it is incomplete.
                return
        if cycle is None or not cycle.complete:
            self.write(encode_error(error, self.default_headers))
        self._drain()

    # Writing.

    def write(self, data: Piece) -> None:
        if not self._transport.is_closing():
            self.sent_bytes += len(data)
            self._transport.write(data)
            if not self.has_unread:
                self._endpoint.watch.watch_output(self)

    def writelines(self, pieces: tuple[Piece, ...]) -> None:
        if not self._transport.is_closing():
            self.sent_bytes += sum(map(len, pieces))
            self._transport.writelines(pieces)
            if not self.has_unread:
                self._endpoint.watch.watch_output(self)

    async def room(self) -> None:
        """Return when the write buffer has room, or the client is gone."""
        if self._room is None:
            self._room = asyncio.Event()
        await self._room.wait()

    def detach(self) -> None:
        if self.state is State.RESPONSE:
            self._enter(State.DETACHED)

    def response_complete(self) -> None:
        """Continue with the next request, or close."""
        cycle = self._cycle
        if cycle is None or self._transport.is_closing():
            self._enter(State.CLOSED)
        elif self.state is State.BODY:
            if cycle.keep_alive:
                self.resume_reading()
                self.expect_body()
            else:
                self._drain()
        elif cycle.keep_alive:
            self._go_idle()
            self._read_held()
        elif self._held:
            self._drain()
        else:
            self.close()

    def _go_idle(self) -> None:
        self._cycle = None
        self._enter(State.IDLE)
        if not self._held:
            self.resume_reading()

    # Ending.

    @property
    def _is_silent(self) -> bool:
        """Whether nothing has arrived yet, or nothing since the last response."""
        return self.state is not State.BODY and (self._head is None or not self._head.has_begun)

    def time_is_up(self) -> None:
        self._queue = None
        if self._is_silent:
            self.close()
        else:
            self._refuse(RequestTimeoutError())

    def abort_stalled(self) -> None:
        self.stalled = True
        if self._cycle is None or not self._cycle.is_detached:
            seconds = self._endpoint.watch.timeouts.stall_seconds
            logger.info("connection cut off", reason=f"it read nothing for {seconds:g} seconds")
        self.abort()

    def _drain(self) -> None:
        """Write nothing more, and discard input until the client has closed its side."""
        self._held = b""
        if self.half_closed or self._transport.is_closing():
            self.close()
            return
        self._enter(State.DRAINING)
        self._discarded_bytes = 0
        self.resume_reading()
        self._transport.write_eof()

    def close(self) -> None:
        """Close once everything that was written has been sent."""
        self._held = b""
        self._enter(State.CLOSED)
        self._leave(self._transport.close)

    def abort(self) -> None:
        """Close at once."""
        self._held = b""
        self._enter(State.CLOSED)
        self._leave(self._transport.abort)

    def _leave(self, end: Callable[[], None]) -> None:
        """Call ``end`` of the transport.

        asyncio's own transports would report a lost connection twice if ``resume_writing`` did.
        """
        if self._is_resuming:
            asyncio.get_running_loop().call_soon(end)
        else:
            end()

    def unread_bytes(self) -> int:
        connection = self._transport.get_extra_info("socket")
        kernel_bytes = 0 if connection is None else unacknowledged_bytes(connection.fileno())
        return self._transport.get_write_buffer_size() + kernel_bytes

    def is_dead(self) -> bool:
        connection = self._transport.get_extra_info("socket")
        if connection is None or _TCP_INFO is None:
            return False
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        except OSError:
            return True
        return bool(info[0] == _TCP_CLOSE)


def encode_error(error: ReattachError, headers: Headers = ()) -> bytes:
    """Encode an error response, after which the connection closes."""
    response = error_response(error)
    head = response_head(
        response.status_code, (*headers, *response.raw_headers), b"connection: close"
    )
    return head + bytes(response.body)
