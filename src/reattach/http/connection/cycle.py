"""One request and its response: ASGI's ``receive`` and ``send``, and a stream's ``Connection``.

An HTTP/1.1 body of unknown length is sent in chunks, an HTTP/1.0 body until the connection closes.
The head of a response is sent with the first part of its body, as ASGI requires.
"""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol

import structlog
from starlette.types import ASGIApp, Message, Scope, Send

from reattach.domain.limits import BODY_AHEAD_BYTES, LARGE_WRITE_BYTES
from reattach.http.connection.head import Head
from reattach.http.errors import unknown_error_response
from reattach.http.stream.body import CONNECTION_EXTENSION, Piece

logger = structlog.get_logger(__name__)

Headers = Iterable[tuple[bytes, bytes]]

_LAST_CHUNK: Final = b"0\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_WITHOUT_BODY: Final = frozenset({204, 304})


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode()


_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


def response_head(status: int, headers: Headers, *more: bytes) -> bytes:
    """Encode a head with further lines ``more``. Raises ValueError for a line end in a header."""
    lines = [_STATUS_LINES[status], *map(b": ".join, headers), *more, b"", b""]
    head = b"\r\n".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(lines) - 1:
        raise ValueError("A header of the response contains a line end.")
    return head


class Transport(Protocol):
    """The connection, as seen by one of its requests."""

    write_paused: bool
    stalled: bool
    half_closed: bool

    @property
    def default_headers(self) -> Headers:
        """Headers of every response."""

    def write(self, data: Piece) -> None:
        """Send bytes; does nothing if the connection is closing."""

    def writelines(self, pieces: tuple[Piece, ...]) -> None:
        """Send several pieces without joining them."""

    async def room(self) -> None:
        """Return when the write buffer has room, or the client is gone."""

    def pause_reading(self) -> None:
        """Stop reading until ``resume_reading``."""

    def resume_reading(self) -> None:
        """Continue reading."""

    def expect_body(self) -> None:
        """Restart the deadline for more of the body."""

    def detach(self) -> None:
        """Continue the response without the application."""

    def response_complete(self) -> None:
        """Continue with the next request, or close."""

    def close(self) -> None:
        """Close once everything that was written has been sent."""

    def abort(self) -> None:
        """Close at once."""


class Cycle:
    """One request of a connection, and the ``Connection`` that a stream may keep."""

    __slots__ = ("_body", "_chunked", "_connection", "_continue_due", "_end_received",
                 "_expected_bytes", "_head", "_input_event", "_method", "_on_half_close",
                 "_on_left", "_on_room", "_version", "complete", "gone", "is_detached",
                 "keep_alive", "more_body", "scope", "started")  # fmt: skip

    def __init__(
        self,
        connection: Transport,
        head: Head,
        server: tuple[str, int] | None,
        client: tuple[str, int],
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.version,
            "server": server,
            "client": client,
            "scheme": "http",
            "root_path": "",
            "headers": head.headers,
            "state": {},
            "method": head.method,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query_string,
            "extensions": {CONNECTION_EXTENSION: self},
        }
        self.keep_alive = head.keep_alive
        self.more_body = True
        """The request is not complete."""
        self.started = False
        """The application has started its response."""
        self.complete = False
        """The whole response was written."""
        self.gone = False
        """The client is gone."""
        self.is_detached = False
        self._on_half_close: Callable[[], None] | None = None
        self._on_left: Callable[[], None] | None = None
        self._on_room: Callable[[], None] | None = None
        self._connection = connection
        self._method = head.method
        self._version = head.version
        self._continue_due = head.expects_continue
        self._body = b""
        self._end_received = False
        """The application has received the end of the request."""
        self._input_event: asyncio.Event | None = None
        self._head = b""
        """The head of the response, held back until the first part of the body."""
        self._chunked = False
        self._expected_bytes = -1
        """The missing bytes of the announced length; -1 if none was announced."""

    async def run(self, app: ASGIApp) -> None:
        """Run the application, and make sure that the client gets a response."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.started or self.is_detached or self.gone):
                raise RuntimeError("The application sent no response.")
        except Exception as error:
            if self.started or self.gone:
                logger.exception("response aborted")
                self._close_incomplete()
            else:
                await self._send_unknown_error(error)
        except BaseException:
            self._close_incomplete()
            raise
        else:
            if not (self.complete or self.is_detached or self.gone):
                logger.error("response aborted", reason="the application did not end its body")
                self._close_incomplete()
        finally:
            self.scope = {}  # Breaks a reference cycle, which only the collector would free.

    def _close_incomplete(self) -> None:
        """Close without the end of the body, so that the client sees that it is incomplete."""
        if not (self.complete or self.gone):
            self._connection.close()

    async def _send_unknown_error(self, error: Exception) -> None:
        response = unknown_error_response(error)
        await response(self.scope, self.receive, self.send)

    # The request.

    @property
    def waits_for_continue(self) -> bool:
        """Whether the client sends no body before the application asks for it."""
        return self._continue_due

    def feed_body(self, body: bytes, *, whole: bool) -> None:
        """Take more of the request body."""
        if not self.complete and not self.gone:
            self._body = self._body + body if self._body else body
            if len(self._body) > BODY_AHEAD_BYTES:
                self._connection.pause_reading()
        self.more_body = not whole
        self._continue_due = False
        if self._input_event is not None:
            self._input_event.set()

    def disconnect(self) -> None:
        """Report that the client is gone."""
        if self.gone:
            return
        self.gone = True
        if self._input_event is not None:
            self._input_event.set()
        call, self._on_left = self._on_left, None
        if call is not None:
            call()

    async def receive(self) -> Message:
        while not (self.gone or self.complete):
            if self._body or not (self.more_body or self._end_received):
                body, self._body = self._body, b""
                self._end_received = not self.more_body
                self._connection.resume_reading()
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            if self._continue_due and not self.started:
                self._continue_due = False
                self._connection.write(_CONTINUE)
                self._connection.expect_body()
            if self._input_event is None:
                self._input_event = asyncio.Event()
            self._input_event.clear()
            await self._input_event.wait()
        return {"type": "http.disconnect"}

    # The response.

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection.write_paused:
            await connection.room()
        if self.gone:
            return
        if message["type"] == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and self.started and not self.complete:
            body = b"" if self._method == "HEAD" else message.get("body", b"")
            self._send_body(body, more=message.get("more_body", False))
        else:
            raise RuntimeError(f"The application sent {message['type']!r} out of order.")

    def _start(self, status: int, headers: Headers) -> None:
        self._chunked, self._expected_bytes = False, -1
        if self._continue_due:  # The client may still send the body, or not.
            self._continue_due = self.keep_alive = False
        kept = [*self._connection.default_headers]
        has_length = False
        for header in headers:
            name = header[0]
            if name == b"content-length":
                has_length = True
                self._expected_bytes = int(header[1])
            elif name == b"connection":
                if b"close" in header[1].lower():
                    self.keep_alive = False
                continue
            elif name == b"transfer-encoding":
                continue
            kept.append(header)
        lines = []
        if self._method == "HEAD" or status in _WITHOUT_BODY:
            self._expected_bytes = 0
        elif not has_length:
            if self._version == "1.0":
                self.keep_alive = False
            else:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif self._version == "1.0":
            lines.append(b"connection: keep-alive")
        self._head = response_head(status, kept, *lines)
        self.started = True

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._expected_bytes >= 0:
            self._expected_bytes -= len(body)
            if self._expected_bytes < 0 or (self._expected_bytes and not more):
                raise RuntimeError("The body does not have the length that its head announced.")
        if not more:
            self.finish(body)
        elif body:
            self.write(body)

    # The Connection that is lent to a stream.

    @property
    def stalled(self) -> bool:
        return self._connection.stalled

    @property
    def half_closed(self) -> bool:
        return self.gone or self._connection.half_closed

    async def begin(self, send: Send, start: Message) -> None:
        if send != self.send:  # Middleware wraps ``send`` and may add headers.
            await send(start)
        else:
            self._start(start["status"], start["headers"])

    def detach(self) -> None:
        self.is_detached = True
        self.scope = {}  # Frees most of the request's memory.
        self._body = b""
        self._connection.detach()

    def flush(self) -> None:
        if self._head and not self.gone:
            head, self._head = self._head, b""
            self._connection.write(head)

    def write(self, *body: Piece) -> None:
        if self.gone:
            return
        head, self._head = self._head, b""
        if not self._chunked:
            self._connection.write(b"".join((head, *body)) if head or len(body) > 1 else body[0])
        elif (size_bytes := sum(map(len, body))) >= LARGE_WRITE_BYTES:
            self._connection.writelines((b"%b%x\r\n" % (head, size_bytes), *body, b"\r\n"))
        else:
            piece = _chunk(b"".join(body))
            self._connection.write(head + piece if head else piece)

    def try_write(self, body: Piece) -> bool:
        connection = self._connection
        if self.gone or connection.write_paused:
            return False
        if self._chunked and not self._head and len(body) < LARGE_WRITE_BYTES:  # Most events.
            connection.write(_chunk(body))
        else:
            self.write(body)
        return True

    def finish(self, *rest: Piece) -> None:
        if self.gone:
            return
        head, self._head = self._head, b""
        size_bytes = sum(map(len, rest))
        if not self._chunked:
            last = b"".join((head, *rest))
        elif size_bytes >= LARGE_WRITE_BYTES:
            last = b""
            begin = b"%b%x\r\n" % (head, size_bytes)
            self._connection.writelines((begin, *rest, b"\r\n" + _LAST_CHUNK))
        elif size_bytes:
            last = b"".join((head, b"%x\r\n" % size_bytes, *rest, b"\r\n", _LAST_CHUNK))
        else:
            last = head + _LAST_CHUNK
        if last:
            self._connection.write(last)
        self.complete = True
        self._body = b""
        if self._input_event is not None:
            self._input_event.set()
        self._connection.response_complete()

    def abort(self) -> None:
        if not self.gone:
            self._connection.abort()

    def is_writable(self) -> bool:
        return not self._connection.write_paused

    def on_writable(self, call: Callable[[], None] | None) -> None:
        self._on_room = call

    def on_disconnect(self, call: Callable[[], None] | None) -> None:
        self._on_left = call
        if call is not None and self.gone:
            self._on_left = None
            call()

    def on_half_close(self, call: Callable[[], None]) -> None:
        self._on_half_close = call
        if self.half_closed:
            self.notify_half_close()

    def notify_half_close(self) -> None:
        """Report that the client has closed its sending side."""
        call, self._on_half_close = self._on_half_close, None
        if call is not None:
            call()

    def notify_writable(self) -> None:
        """Report that there is room to write again."""
        call, self._on_room = self._on_room, None
        if call is not None:
            call()


class _Chunks:
    """Encodes chunks (RFC 9112, section 7.1), and caches the last one for many readers in a row.

    The cache compares identities: comparing contents costs more than encoding again.
    """

    __slots__ = ("_body", "_chunk")

    def __init__(self) -> None:
        self._body: Piece = b""
        self._chunk = b""

    def encode(self, body: Piece) -> bytes:
        if body is not self._body:
            self._body = body
            self._chunk = b"%x\r\n%b\r\n" % (len(body), body)  # type: ignore[str-format]  # any buffer
        return self._chunk


_chunk: Final = _Chunks().encode
