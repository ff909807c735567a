"""What this server adds to uvicorn's HTTP protocol: a hold on connections, and bounded heads."""

import fcntl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import msgspec
from starlette.types import Message, Send
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from reattach.http.delivery import CONNECTION_EXTENSION, Connection, Piece
from reattach.limits import LARGE_WRITE_BYTES, MAX_HEAD_BYTES

_LAST_CHUNK: Final = b"0\r\n\r\n"
_UNREADABLE: Final = "This is not an HTTP/1.1 request that can be read. Nothing was done."
_TOO_LARGE: Final = f"The URL and headers of a request may have {MAX_HEAD_BYTES} bytes together."


class StreamProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with ``CONNECTION_EXTENSION`` in every scope.

    Closing a transport waits until its buffer is written, which for a reader that takes nothing
    is never; only an abort frees it. And only the kernel knows whether a reader takes anything: it
    asks for more in lumps, which for a slow one are minutes apart.

    A request whose head is not complete after MAX_HEAD_BYTES is refused; the parser would keep
    all of it. What is refused here gets a JSON body as every other error does.
    """

    when_left: Callable[[], None] | None = None
    """What the present response wants called when the other side is gone."""

    when_room: Callable[[], None] | None = None
    """What it wants called when there is room to write."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, "limit_exceeded", _TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._lent = _Lent(self)
        lent: dict[str, Connection] = {CONNECTION_EXTENSION: self._lent}
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", lent)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it, and all of this, if it was reset.
        if self.when_left is not None:
            self.when_left()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.when_room is not None:
            self.when_room()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self.cycle is not None:
            self._lent.cycle = self.cycle

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's text says less
        self._refuse(400, "invalid_http", _UNREADABLE)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        body = msgspec.json.encode({"detail": detail, "code": code})
        head = (
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


class _Lent:
    """The ``Connection`` of one request."""

    __slots__ = ("_head", "_protocol", "cycle")

    def __init__(self, protocol: StreamProtocol) -> None:
        self._protocol = protocol
        self._head = b""
        """The head of the response, if it still waits."""
        self.cycle: RequestResponseCycle
        """uvicorn's side of the request, once its head was read."""

    async def begin(self, send: Send, start: Message) -> None:
        cycle = self.cycle
        if send != cycle.send:  # Somebody between has more to say in it.
            await send(start)
            return
        cycle.response_started = cycle.chunked_encoding = True
        cycle.waiting_for_100_continue = False
        lines = [STATUS_LINE[start["status"]]]
        for name, value in (*cycle.default_headers, *start["headers"]):
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"transfer-encoding: chunked\r\n\r\n")
        self._head = b"".join(lines)

    def keep(self) -> None:
        # For a client that is gone uvicorn does not mind that the application leaves off, and
        # requests that came after this one go on waiting for its end.
        self.cycle.disconnected = True
        if self._protocol.scope is self.cycle.scope:
            self._protocol.scope = cast("HTTPScope", {})
        self.cycle.scope = cast("HTTPScope", {})  # It weighs more than all else of the request.

    def flush(self) -> None:
        if self._head:
            transport, head, self._head = self._protocol.transport, self._head, b""
            if not transport.is_closing():
                transport.write(head)

    def finish(self, *rest: Piece) -> None:
        transport = self._protocol.transport
        if transport.is_closing():
            self.cycle.disconnected = True
            return
        head, size_bytes = self._head, sum(map(len, rest))
        if size_bytes:
            transport.write(b"".join((head, b"%x\r\n" % size_bytes, *rest, b"\r\n", _LAST_CHUNK)))
        else:
            transport.write(head + _LAST_CHUNK)
        self._head = b""
        self.cycle.response_complete = True
        if not self.cycle.keep_alive:
            transport.close()
        self._protocol.on_response_complete()

    def abort(self) -> None:
        self._protocol.transport.abort()

    def has_room(self) -> bool:
        return not self._protocol.flow.write_paused

    def when_room(self, call: Callable[[], None] | None) -> None:
        self._protocol.when_room = call

    def untaken_bytes(self) -> int:
        """What the client's side has not confirmed to have, here and in the kernel."""
        transport = self._protocol.transport
        kernel_bytes = 0
        connection = transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):  # It is closed, or this kernel does not tell.
                answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
                (kernel_bytes,) = struct.unpack("i", answer)
        return transport.get_write_buffer_size() + kernel_bytes

    def write(self, body: Piece) -> None:
        transport = self._protocol.transport
        if transport.is_closing():
            return
        if len(body) >= LARGE_WRITE_BYTES:
            transport.writelines((b"%b%x\r\n" % (self._head, len(body)), body, b"\r\n"))
            self._head = b""
        elif self._head:
            transport.write(self._head + _chunk(body))
            self._head = b""
        else:
            transport.write(_chunk(body))

    def when_left(self, call: Callable[[], None] | None) -> None:
        self._protocol.when_left = call
        if call is not None and self._protocol.transport.is_closing():
            call()


class _Chunks:
    """Chunks as RFC 9112, section 7.1 has them. Many readers get the same one after the other.

    They are told by their identity: a look at all of it costs more than to make it again.
    """

    __slots__ = ("_body", "_chunk")

    def __init__(self) -> None:
        self._body: Piece = b""
        self._chunk = b""

    def __call__(self, body: Piece) -> bytes:
        if body is not self._body:
            self._body, self._chunk = body, b"%x\r\n%b\r\n" % (len(body), bytes(body))
        return self._chunk


_chunk: Final = _Chunks()
