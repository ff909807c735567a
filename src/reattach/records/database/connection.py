"""Connections to PostgreSQL that never wait for a silent server without an end.

Imported only where a PostgreSQL is used, because its driver is an extra.
"""

import asyncio
import os
import socket
import time
from contextlib import suppress
from typing import Any, Final, Self

import psycopg
from psycopg.abc import PQGen
from typing_extensions import override

from reattach.sockets import unacknowledged_bytes

SILENCE_SECONDS: Final = 6.0
"""How long nothing may move in either direction while a reply is awaited. A server that waits for a
lock gives up before that and says so; a silent one is gone, though the network may not show it."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose every command ends, with OperationalError when the server is silent."""

    @classmethod
    def open(cls, session: str, **arguments: Any) -> Self:
        """Connect and execute ``session``."""
        connection = cls.connect(**arguments, autocommit=True)
        try:
            connection.execute(session)
        except BaseException:
            connection.close()
            raise
        return connection

    @override
    def wait(self, gen: PQGen[Any], *args: Any, **rest: Any) -> Any:
        return super().wait(self._bounded(gen), *args, **rest)

    def _bounded(self, gen: PQGen[Any]) -> PQGen[Any]:
        """Yield and return as ``gen`` does, and hang up when nothing moves for too long."""
        moved_at = time.monotonic()
        unsent = 0
        try:
            wanted = next(gen)
            while True:
                # The driver sends "not ready" several times a second.
                ready = yield wanted
                # A slow network may still be taking bytes that were written long ago.
                before, unsent = unsent, 0 if ready else self._unsent_bytes()
                if ready or unsent != before:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at >= SILENCE_SECONDS:
                    _hang_up(self)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _unsent_bytes(self) -> int:
        return 0 if self.closed else unacknowledged_bytes(self.fileno())


class ListeningConnection(psycopg.AsyncConnection[Any]):
    """A connection that waits for notifications."""

    @classmethod
    async def open(cls, session: str, **arguments: Any) -> Self:
        """Connect and execute ``session``.

        A cancelled caller waits for the attempt and closes the connection: one that is abandoned
        while it is being made stays on the server for a minute.
        """
        attempt = asyncio.create_task(cls._open(session, **arguments))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            with suppress(psycopg.Error):
                await (await attempt).close()
            raise

    @classmethod
    async def _open(cls, session: str, **arguments: Any) -> Self:
        connection = await cls.connect(**arguments, autocommit=True)
        try:
            await connection.ask(session)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def ask(self, statement: str) -> None:
        """Execute a short statement; raises OperationalError when the server is silent."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(SILENCE_SECONDS, _hang_up, self)
        try:
            await self.execute(statement)
        finally:
            alarm.cancel()


def _hang_up(connection: psycopg.BaseConnection[Any]) -> None:
    """Shut the socket down as a dying server would, so that a waiting command fails at once."""
    if not connection.closed:
        # A second descriptor of the socket: closing it leaves the driver's own open.
        with socket.socket(fileno=os.dup(connection.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
