"""Taking connections, all that wait at once: uvloop itself takes one in a turn of its loop."""

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
"""What may be there again later: files and memory."""


Address = tuple[str, int]


class Acceptor:
    """Makes a connection of everybody who knocks at ``listener``, which has to be non-blocking.

    ``admit`` is asked first, with the address of the other side: it returns what is said to one who
    is refused. ``release`` is called with the address of a connection that could not be made.

    A turn of the loop that writes to thousands of readers takes tens of milliseconds; at one
    connection a turn, a crowd that reconnects would wait for minutes. When the process has no
    file left for a connection, those who knock wait for ``pause_seconds``, and are not lost.
    """

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[Address], asyncio.Protocol],
        *,
        admit: Callable[[Address], bytes | None] = lambda _: None,
        release: Callable[[Address], object] = lambda _: None,
        pause_seconds: float = ACCEPT_PAUSE_SECONDS,
    ) -> None:
        self._listener = listener
        self._new_protocol = new_protocol
        self._admit = admit
        self._release = release
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
        """Take no more. Idempotent; the listener stays as it is."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pause is None:
            self._loop.remove_reader(self._listener.fileno())
        else:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Return when every connection that was taken has its protocol."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                connection, (host, port, *_) = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # It left before its turn came.
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                self._wait(error)
                return
            refusal = self._admit((host, port))
            if refusal is not None:
                _refuse(connection, refusal)
                continue
            task = self._loop.create_task(self._connect(connection, (host, port)))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _wait(self, error: OSError) -> None:
        logger.error(
            "no connection can be taken",
            reason=error.strerror,
            remedy="Raise the limit of open files (ulimit -n), or run more processes.",
        )
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(self._pause_seconds, self.start)

    async def _connect(self, connection: socket.socket, address: Address) -> None:
        protocol = self._new_protocol(address)
        try:
            connection.setblocking(False)
            # What is written is to go out at once; servers of asyncio and uvloop set it as well.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()  # The other side is gone.
            self._release(address)


def _refuse(connection: socket.socket, refusal: bytes) -> None:
    """Say why, as far as that is possible without waiting, and close."""
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(refusal)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(REFUSED_BYTES)  # Unread bytes would reset it, and the refusal with it.
