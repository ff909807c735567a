"""Accepts all waiting connections at once; uvloop itself accepts one per tick of its loop."""

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from reattach.domain.limits import ACCEPT_BATCH, ACCEPT_PAUSE_SECONDS, REFUSED_BYTES

logger = structlog.get_logger(__name__)

_OUT_OF: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Resources that may become available again: files and memory."""


Address = tuple[str, int]


class Acceptor:
    """Makes a protocol for every connection to ``listener``, which must be non-blocking.

    ``admit`` is called first, with the client's address: it returns None, or the response for a
    refused client. ``release`` is called with the address of a connection that failed after it was
    admitted. ``prepare`` sets options of a connection before it gets its protocol.

    A tick that writes to thousands of readers takes tens of milliseconds; at one connection per
    tick, a crowd that reconnects would wait for minutes. When the process has no file descriptors
    left, new connections wait in the kernel for ``pause_seconds`` and are not lost.
    """

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[Address], asyncio.Protocol],
        *,
        admit: Callable[[Address], bytes | None] = lambda _: None,
        release: Callable[[Address], object] = lambda _: None,
        prepare: Callable[[socket.socket], object] | None = None,
        pause_seconds: float = ACCEPT_PAUSE_SECONDS,
    ) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._admit = admit
        self._release = release
        self._prepare = prepare
        self._pause_seconds = pause_seconds
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False

    def start(self) -> None:
        self._pause = None
        if not self._is_closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting. Idempotent; the listener stays open."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pause is None:
            self._loop.remove_reader(self._listener.fileno())
        else:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Return when every accepted connection has its protocol."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                connection, (host, port, *_) = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # The client left before it was accepted.
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                self._pause_accepting(error)
                return
            refusal = self._admit((host, port))
            if refusal is not None:
                _refuse(connection, refusal)
                continue
            task = self._loop.create_task(self._connect(connection, (host, port)))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _pause_accepting(self, error: OSError) -> None:
        logger.error(
            "cannot accept connections",
            reason=error.strerror,
            remedy="Raise the limit of open files (ulimit -n), or run more processes.",
        )
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(self._pause_seconds, self.start)

    async def _connect(self, connection: socket.socket, address: Address) -> None:
        protocol = self._new_protocol(address)
        try:
            connection.setblocking(False)
            # Sends each write at once, as the servers of asyncio and uvloop do.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._prepare is not None:
                self._prepare(connection)
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()  # The client is gone.
            self._release(address)


def _refuse(connection: socket.socket, refusal: bytes) -> None:
    """Send the response if that is possible without waiting, and close."""
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(refusal)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(REFUSED_BYTES)  # Closing with unread bytes would discard the response.
