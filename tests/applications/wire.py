"""A relay between an application and the server that records requests and breaks connections."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from reattach.testing.closing import Closing
from reattach.testing.programs.relay import reset

_HEAD_END: Final = b"\r\n\r\n"
_FRAME_END: Final = b"\n\n"
"""The end of a frame as JSON escapes it."""
_CHUNK_END: Final = b"\n\n\r\n"
"""The end of a chunk that ends with a frame."""
_LAST_CHUNK: Final = b"0\r\n\r\n"
_PIECE_BYTES: Final = 64 * 1024
WAIT_SECONDS: Final = 60.0
"""Bound that keeps a broken program from hanging the tests."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the answer to the next request that matches, injected once.

    The head of the answer and ``frames`` frames arrive, then the connection is reset. With None
    nothing arrives, though the server has answered. With ``ends`` the body ends properly after
    this many chunks of at least one frame.
    """

    request: str
    """A regular expression for all of ``METHOD /path``, without the query."""
    frames: int | None = None
    ends: bool = False

    def thread(self, answer: bytearray) -> int | None:
        """Return how much of ``answer`` arrives, or None while it is too short to decide."""
        if self.frames is None:
            return 0
        end = answer.find(_HEAD_END) + len(_HEAD_END)
        if end < len(_HEAD_END):
            return None
        mark = _CHUNK_END if self.ends else _FRAME_END
        for _ in range(self.frames):
            end = answer.find(mark, end) + len(mark)
            if end < len(mark):
                return None
        return end


@dataclass(slots=True)
class Exchange:
    """A request and the received part of its answer."""

    method: str
    target: str
    body: bytes
    fault: Fault | None = None
    answer: bytearray = field(default_factory=bytearray)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def request(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def json(self) -> dict[str, Any]:
        """The body of the request."""
        body = json.loads(self.body or b"{}")
        assert isinstance(body, dict)
        return body

    @property
    def status(self) -> int | None:
        """The status of the answer, or None if no answer has arrived."""
        words = bytes(self.answer[:16]).split()
        return int(words[1]) if len(words) > 1 else None


class Wire(Closing):
    """Relays HTTP/1.1 from a free loopback port to ``target``, and records every exchange.

    Faults apply in order, each to the first request that matches it.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._faults: list[Fault] = []
        self._exchanges: list[Exchange] = []
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True, name="wire").start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        self.drop(*left)

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}"

    def plan(self, *faults: Fault) -> None:
        with self._lock:
            self._faults.extend(faults)

    @property
    def planned(self) -> list[Fault]:
        """The faults that have not happened yet."""
        with self._lock:
            return list(self._faults)

    def requests(self, pattern: str = ".*") -> list[Exchange]:
        """List the exchanges whose ``METHOD /path`` matches, in order of arrival."""
        with self._lock:
            return [one for one in self._exchanges if re.fullmatch(pattern, one.request)]

    def answered(self, pattern: str, status: int) -> Exchange:
        """Wait until a matching request has been answered with ``status``."""

        def found() -> Exchange | None:
            fitting = (one for one in self._exchanges if re.fullmatch(pattern, one.request))
            return next((one for one in fitting if one.status == status), None)

        with self._answered:
            self._answered.wait_for(found, WAIT_SECONDS)
            exchange = found()
        assert exchange is not None, f"no {pattern} was answered with {status}"
        return exchange

    def tell(self) -> None:
        """Notify waiters that a part of an answer has arrived."""
        with self._answered:
            self._answered.notify_all()

    def begin(self, exchange: Exchange) -> None:
        """Record an exchange, and assign it the next fault if that matches."""
        with self._lock:
            self._exchanges.append(exchange)
            if self._faults and re.fullmatch(self._faults[0].request, exchange.request):
                exchange.fault = self._faults.pop(0)

    def drop(self, *sockets: socket.socket) -> None:
        """Reset sockets."""
        with self._lock:
            self._open -= set(sockets)
        for one in sockets:
            reset(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                self.drop(client)
                continue
            for one in client, server:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            connection = _Connection(self, client, server)
            threading.Thread(target=connection.relay, daemon=True).start()


@dataclass(slots=True)
class _Connection:
    wire: Wire
    client: socket.socket
    server: socket.socket
    current: Exchange | None = None
    unread: bytes = b""

    def relay(self) -> None:
        """Relay both directions until both have ended."""
        down = threading.Thread(target=self._pass_answers, daemon=True)
        down.start()
        with suppress(OSError, EOFError):
            while True:
                self._pass_request()
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_WR)
        down.join()
        self.wire.drop(self.client, self.server)

    def _pass_request(self) -> None:
        while _HEAD_END not in self.unread:
            self._read()
        head, _, self.unread = self.unread.partition(_HEAD_END)
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        assert length or b"transfer-encoding" not in head.lower(), "no client here sends chunks"
        size = int(length[1]) if length else 0
        while len(self.unread) < size:
            self._read()
        body, self.unread = self.unread[:size], self.unread[size:]
        method, target, _ = head.decode("latin-1").split(" ", 2)
        self.current = Exchange(method, target, body)
        self.wire.begin(self.current)
        self.server.sendall(head + _HEAD_END + body)

    def _read(self) -> None:
        piece = self.client.recv(_PIECE_BYTES)
        if not piece:
            raise EOFError
        self.unread += piece

    def _pass_answers(self) -> None:
        """Relay the server's bytes up to the fault of the current exchange."""
        try:
            while piece := self.server.recv(_PIECE_BYTES):
                exchange = self.current
                assert exchange is not None, "a server speaks when it is asked"
                passed = len(exchange.answer)
                exchange.answer += piece
                self.wire.tell()
                fault = exchange.fault
                thread = None if fault is None else fault.thread(exchange.answer)
                if fault is None or thread is None:
                    self.client.sendall(piece)
                    continue
                del exchange.answer[thread:]
                self.client.sendall(exchange.answer[passed:])
                self._break(ends=fault.ends)
                return
            self.client.shutdown(socket.SHUT_WR)
        except OSError:
            self.wire.drop(self.client, self.server)

    def _break(self, *, ends: bool) -> None:
        if ends:
            self.client.sendall(_LAST_CHUNK)
            self.client.shutdown(socket.SHUT_RDWR)
        else:
            self.wire.drop(self.client)
        self.wire.drop(self.server)
