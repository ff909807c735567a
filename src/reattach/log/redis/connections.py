"""The connections over which a process sends its commands to a Redis server."""

import math
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from reattach.log.redis.exchange import Exchange

_BUFFER_BYTES: Final = 256 * 1024
_PING: Final = pack_command(("PING",))


class Connections:
    """The connections of a pool, kept between commands.

    redis-py connects. Beyond that, its pool locks, checks the connection and reports to its
    observers whenever a connection leaves or returns, and its connections read through streams:
    together that takes longer than a command. The caller bounds the number of commands at a time.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: list[_Line] = []
        self._buffer = bytearray(_BUFFER_BYTES)

    async def execute(self, *command: bytes | str | int) -> Any:
        """Send the command, and return its answer.

        If the connection is dead, the command is sent again on a new one.

        Raises:
            RedisError, OSError, TimeoutError: Redis does not answer, or refuses the command.
        """
        packed = pack_command(cast("tuple[Any]", command))  # Its stub allows one word only.
        line = self._idle.pop() if self._idle else await self._new_line()
        try:
            answer = await line.ask(packed)
        except ResponseError:  # This is an answer too.
            self._idle.append(line)
            raise
        except BaseException:
            # The others may be connected to the same dead server.
            await self._release([line, *self._idle])
            raise
        self._idle.append(line)
        return answer

    async def reconnect(self) -> None:
        """Let every later command use a new connection."""
        await self._release(self._idle)

    async def _new_line(self) -> "_Line":
        pool: Any = self._pool
        return _Line(cast("AbstractConnection", await pool.get_connection()), self._buffer)

    async def _release(self, lines: "list[_Line]") -> None:
        self._idle = []
        for line in lines:
            await line.disconnect()
            await self._pool.release(line.connection)


class _Line:
    """A connection of the pool, which is made again after it was lost."""

    def __init__(self, connection: AbstractConnection, buffer: bytearray) -> None:
        self.connection: Final = connection
        self._buffer = buffer
        self._exchange: Exchange | None = None if not connection.is_connected else self._taken()

    def _taken(self) -> Exchange:
        return Exchange(self.connection, self._buffer)

    async def ask(self, packed: bytes) -> Any:
        """Return the answer to a command, which is sent again if the connection is dead."""
        return await self.connection.retry.call_with_retry(
            partial(self._ask, packed), lambda _: self.disconnect()
        )

    async def _ask(self, packed: bytes) -> Any:
        exchange = self._exchange
        if exchange is None or exchange.is_lost:
            await self.disconnect()
            await cast("Any", self.connection).connect()  # With Sentinel, to the present primary.
            exchange = self._exchange = self._taken()
        elif exchange.idle_seconds > (self.connection.health_check_interval or math.inf):
            await exchange.ask(_PING)
        try:
            return await exchange.ask(packed)
        except ReadOnlyError as error:
            if isinstance(self.connection, SentinelManagedConnection):
                raise RedisConnectionError("It is a former primary.") from error
            raise

    async def disconnect(self) -> None:
        self._exchange = None
        with suppress(RedisError, OSError):
            await self.connection.disconnect(nowait=True)
