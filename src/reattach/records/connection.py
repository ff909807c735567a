"""A connection to PostgreSQL that waits for no reply without an end.

Imported where a PostgreSQL is used only: its driver is an extra.
"""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any, Final, Self

import psycopg
from psycopg.abc import PQGen
from typing_extensions import override

REPLY_SECONDS: Final = 6.0
"""How long a reply is waited for. The server gives a statement up before that, and says so; one
that says nothing is gone, though the network may not have noticed."""


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
        # What waits for notices says itself for how long.
        seconds = REPLY_SECONDS + (rest.get("timeout") or 0.0)
        alarm = asyncio.get_running_loop().call_later(seconds, self._hang_up)
        try:
            return await super().wait(gen, *args, **rest)
        finally:
            alarm.cancel()

    def _hang_up(self) -> None:
        """End the conversation as a dying server would; whoever waits for it is told at once."""
        if not self.closed:
            # A second descriptor of one socket: closing it leaves the driver's own alone.
            with socket.socket(fileno=os.dup(self.fileno())) as end, suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
