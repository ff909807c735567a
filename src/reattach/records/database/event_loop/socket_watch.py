"""The socket of a connection to PostgreSQL, watched by the event loop instead of a thread."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn
from psycopg.waiting import Ready, Wait

from reattach.futures import settle

_T = TypeVar("_T")

_TICK_SECONDS: Final = 0.1
"""How often the event loop looks whether a server is silent."""


class Watched(Protocol):
    """A connection whose socket the event loop can watch."""

    pgconn: PGconn
    is_in_loop: bool

    def fileno(self) -> int: ...

    def unsent_bytes(self) -> int:
        """Return the bytes that the network has not taken yet."""

    def hang_up_after(self, silent_seconds: float) -> None:
        """Hang up if the server has been silent for too long."""


class SocketWatch:
    """Drives the generators of one connection in the event loop, which watches its socket.

    Between two uses it takes what the server sends, such as the answer to the commit of a read.
    """

    def __init__(self, connection: Watched) -> None:
        self._connection = connection
        self._descriptor = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._waits: PQGen[Any] | None = None
        self._done: asyncio.Future[Any] | None = None
        self._on_end: Callable[[], object] | None = None
        self._is_reading = True
        self._is_writing = False
        self._tick: asyncio.TimerHandle | None = None
        self._has_moved = False
        """Whether anything came since the last tick."""
        self._moved_at = 0.0
        self._unsent_bytes = 0
        self._loop.add_reader(self._descriptor, self._note_readable)

    def drive(self, waits: PQGen[_T], on_end: Callable[[], object]) -> "asyncio.Future[_T]":
        """Drive the generator; the future gets its result. The one before has ended.

        ``on_end`` is called at the end, even if the future was cancelled before. Meanwhile,
        everything that would wait raises LeftToThreadError.
        """
        done: asyncio.Future[_T] = self._loop.create_future()
        self._waits, self._done, self._on_end = waits, done, on_end
        self._connection.is_in_loop = True
        self._has_moved = True
        if self._tick is None:
            self._tick = self._loop.call_later(_TICK_SECONDS, self._note_time)
        self._go_on(None)
        return done

    def end_of(self, waits: PQGen[_T]) -> "asyncio.Future[_T] | None":
        """Return a new future for the result of the generator; None if it has ended."""
        if self._waits is not waits:
            return None
        self._done = self._loop.create_future()
        return self._done

    def end(self) -> None:
        """Watch the socket no longer."""
        self._stop_reading()
        self._write(False)
        if self._tick is not None:
            self._tick.cancel()

    def _note_readable(self) -> None:
        if self._waits is not None:
            self._has_moved = True
            self._go_on(Ready.R)
            return
        try:
            self._connection.pgconn.consume_input()
        except psycopg.OperationalError:  # The next use will find that it is lost.
            self._stop_reading()

    def _stop_reading(self) -> None:
        # A later socket may have the same descriptor.
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._descriptor)

    def _note_time(self) -> None:
        self._tick = None
        if self._waits is None:
            return
        self._tick = self._loop.call_later(_TICK_SECONDS, self._note_time)
        now = time.monotonic()
        # A slow network may still be taking bytes that were written long ago.
        before, self._unsent_bytes = self._unsent_bytes, self._connection.unsent_bytes()
        if self._has_moved or before != self._unsent_bytes:
            self._has_moved, self._moved_at = False, now
            return
        # uvloop calls only once for a connection that was reset, even if bytes came before that.
        self._go_on(Ready.R)
        if self._waits is not None:
            self._connection.hang_up_after(now - self._moved_at)

    def _go_on(self, ready: Ready | None) -> None:
        waits = self._waits
        assert waits is not None
        result: Any = None
        error: BaseException | None = None
        try:
            wanted = waits.send(ready)  # type: ignore[arg-type]
        except StopIteration as end:
            result = end.value
        except Exception as raised:  # noqa: BLE001  the future raises it
            error = raised
        else:
            self._write(wanted is Wait.RW)
            return
        done, on_end = self._done, self._on_end
        self._waits = self._done = self._on_end = None
        self._connection.is_in_loop = False
        self._write(False)
        if on_end is not None:
            on_end()
        if done is not None:
            settle(done, result, error)

    def _write(self, is_writing: bool) -> None:
        """Watch whether the socket takes more bytes, or do so no longer."""
        if is_writing == self._is_writing:
            return
        self._is_writing = is_writing
        if is_writing:
            self._loop.add_writer(self._descriptor, self._note_writable)
        else:
            self._loop.remove_writer(self._descriptor)

    def _note_writable(self) -> None:
        self._has_moved = True
        self._go_on(Ready.W)
