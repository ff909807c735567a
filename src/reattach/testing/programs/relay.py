"""A TCP relay between a client and a server that cuts, delays and drops traffic."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from reattach.testing.closing import Closing

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close send RST (RFC 9293, section 3.10.4), as a network failure does."""

_PIECE_BYTES: Final = 64 * 1024


class Relay(Closing):
    """Relays connections from a free loopback port to ``target``. Thread-safe.

    ``target`` is a host and port or the path of a unix socket. Setting it affects new connections.
    ``bytes_per_second`` limits each direction. Each connection is cut ``connection_seconds`` after
    its start. ``on_down`` is called with each chunk from the server before it is relayed, in a
    thread of the relay.
    """

    def __init__(
        self,
        target: tuple[str, int] | str,
        *,
        on_down: Callable[[bytes], None] | None = None,
        bytes_per_second: int | None = None,
        connection_seconds: float | None = None,
    ) -> None:
        self.target = target
        self._on_down = on_down
        self.delay_seconds = 0.0
        """Delay of every chunk, in both directions."""
        self.piece_bytes = _PIECE_BYTES
        """Largest size of a relayed chunk."""
        self._swallowing = False
        self._stranded = 0
        """Connections up to this number, in the order of accept, are half-open."""
        self._cut_up_to = 0
        self._bytes_per_second = bytes_per_second
        self._connection_seconds = connection_seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        if bytes_per_second is not None:  # Otherwise the kernel buffers megabytes.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = threading.Event()
        self.connections = 0
        """Number of connections that it has accepted."""
        self.bytes_down = 0
        """Number of bytes received from servers, relayed or not."""
        self._cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return host, port

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://{host}:{port}"

    @property
    def open_connections(self) -> int:
        """Number of connections that are open now."""
        with self._lock:
            return len(self._open) // 2

    def cut(self) -> int:
        """Reset every open connection on both sides, and return the number of sockets."""
        with self._lock:
            sockets = list(self._open)
            self._open.clear()
            self._cut_up_to = self.connections
        for one in sockets:
            reset(one)
        return len(sockets)

    def cut_after(self, bytes_down: int) -> None:
        """Cut all connections after this many more bytes from the server, also within a frame."""
        with self._lock:
            self._cut_after = self.bytes_down + bytes_down

    def pause(self) -> None:
        """Hold back what servers send until ``resume``, as a client that reads nothing does."""
        self._flowing.clear()

    def swallow(self) -> None:
        """Drop everything in both directions until ``resume``, as a silent network failure does."""
        self._swallowing = True

    def strand(self) -> None:
        """Drop everything of existing connections for good, without closing them."""
        self._stranded = self.connections

    def resume(self) -> None:
        """End ``pause`` and ``swallow``."""
        self._swallowing = False
        self._flowing.set()

    def mend(self) -> None:
        """Undo every disturbance. Connections that have lost bytes are cut."""
        self.delay_seconds = 0.0
        self.piece_bytes = _PIECE_BYTES
        if self._swallowing or self._stranded > self._cut_up_to:
            self.strand()  # Nothing may pass after the gap before they are cut.
            self.resume()
            self.cut()
        self.resume()

    def close(self) -> None:
        """Stop listening and cut all connections. Idempotent."""
        self._closed.set()
        self._flowing.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = self._connect()
            except OSError:
                reset(client)
                continue
            server.settimeout(None)
            for one in client, server:
                if one.family != socket.AF_UNIX:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
                was_cut = self.connections <= self._cut_up_to
            if was_cut or self._closed.is_set():  # A concurrent cut may have missed these sockets.
                self._drop(client, server)
            if self._connection_seconds is not None:
                timer = threading.Timer(self._connection_seconds, self._drop, (client, server))
                timer.daemon = True
                timer.start()
            arguments = (client, server, self.connections)
            threading.Thread(target=self._relay, args=arguments, daemon=True).start()

    def _connect(self) -> socket.socket:
        if not isinstance(self.target, str):
            return socket.create_connection(self.target, timeout=5)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self.target)
        except OSError:
            server.close()
            raise
        return server

    def _relay(self, client: socket.socket, server: socket.socket, number: int) -> None:
        """Relay both directions, and close both sockets when both have ended."""
        up = threading.Thread(target=self._pump, args=(client, server, number, False), daemon=True)
        up.start()
        self._pump(server, client, number, True)
        up.join()
        self._drop(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket, number: int, is_down: bool) -> None:
        try:
            while data := source.recv(_PIECE_BYTES):
                is_last = False
                if is_down:
                    if self._on_down is not None:
                        self._on_down(data)
                    data, is_last = self._counted(data)
                    self._flowing.wait()
                self._pass_on(sink, data, number)
                if is_last:
                    self.cut()
                    # A concurrent cut may not have reset these yet: no byte may follow the gap.
                    self._drop(source, sink)
                    return
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(source, sink)  # which also ends the other direction

    def _pass_on(self, sink: socket.socket, data: bytes, number: int) -> None:
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if self._swallowing or number <= self._stranded:
            return
        piece_bytes = self.piece_bytes
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            sink.sendall(piece)
            if self._bytes_per_second is not None:
                time.sleep(len(piece) / self._bytes_per_second)

    def _counted(self, data: bytes) -> tuple[bytes, bool]:
        """Count ``data``. Return the part before a due cut, and whether the cut is due."""
        with self._lock:
            is_last = self._cut_after is not None and self.bytes_down + len(data) >= self._cut_after
            if is_last:
                assert self._cut_after is not None
                data = data[: self._cut_after - self.bytes_down]
                self._cut_after = None
            self.bytes_down += len(data)
            return data, is_last

    def _drop(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._open -= set(sockets)
        for one in sockets:
            reset(one)


def reset(one: socket.socket) -> None:
    """Close a socket with RST, as a network failure does. Idempotent."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()
