"""A connection to PostgreSQL that waits for no silent server without an end.

Imported where a PostgreSQL is used only: its driver is an extra.
"""

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

import psycopg
from psycopg.abc import PQGen
from typing_extensions import override

SILENCE_SECONDS: Final = 6.0
"""How long nothing may pass in either direction while a reply is waited for. The server gives up
waiting for locks before that, and says so; one that says and takes nothing is gone, though the
network may not have noticed."""

_INT: Final = struct.Struct("i")


class _Alarm:
    """Calls ``ring`` when nothing has moved for so many seconds."""

    def __init__(
        self, seconds: float, unsent_bytes: Callable[[], int], ring: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._unsent_bytes = unsent_bytes
        self._ring = ring
        self._moved_at = self._loop.time()
        self._unsent = 0
        self._timer = self._loop.call_later(seconds, self._look)

    def note_progress(self) -> None:
        self._moved_at = self._loop.time()

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        # All may be written, and on its way through a slow network.
        unsent, self._unsent = self._unsent, self._unsent_bytes()
        now = self._loop.time()
        if self._unsent != unsent:
            self._moved_at = now
        silent_seconds = now - self._moved_at
        if silent_seconds >= self._seconds:
            self._ring()
        else:
            self._timer = self._loop.call_later(self._seconds - silent_seconds, self._look)


def _noting(gen: PQGen[Any], note_progress: Callable[[], None]) -> PQGen[Any]:
    """Yield and return as ``gen``, and note whenever the socket was ready for it."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                note_progress()
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class BoundedConnection(psycopg.AsyncConnection[Any]):
    """Every command ends, if with OperationalError: a connection that is silent is hung up.

    Also one that was cancelled, and waits for the server to stop.
    """

    @classmethod
    async def begun(cls, session: str, **arguments: Any) -> Self:
        """A connection that has executed ``session``.

        Cancelling waits until there is one, or none, and closes it: one that is let go of in the
        middle of its beginning stays on the server for a minute.
        """
        beginning = asyncio.create_task(cls._begin(session, **arguments))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            with suppress(psycopg.Error):
                await (await beginning).close()
            raise

    @classmethod
    async def _begin(cls, session: str, **arguments: Any) -> Self:
        connection = await cls.connect(**arguments, autocommit=True)
        try:
            await connection.execute(session)
            return connection
        except BaseException:
            await connection.close()
            raise

    @override
    async def wait(self, gen: PQGen[Any], *args: Any, **rest: Any) -> Any:
        # A wait for notices has a timeout of its own.
        seconds = SILENCE_SECONDS + (rest.get("timeout") or 0.0)
        alarm = _Alarm(seconds, self._unsent_bytes, self._hang_up)
        try:
            return await super().wait(_noting(gen, alarm.note_progress), *args, **rest)
        finally:
            alarm.cancel()

    def _unsent_bytes(self) -> int:
        """Bytes that were written and that the server has not acknowledged."""
        unsent = 0
        if not self.closed:
            with suppress(OSError):
                packed = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
                (unsent,) = _INT.unpack(packed)
        return unsent

    def _hang_up(self) -> None:
        """End the conversation as a dying server would; whoever waits for it is told at once."""
        if not self.closed:
            # A second descriptor of one socket: closing it leaves the driver's own alone.
            with socket.socket(fileno=os.dup(self.fileno())) as end, suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
