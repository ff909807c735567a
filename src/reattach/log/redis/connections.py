"""The connections over which a process sends its commands to a Redis server."""

from contextlib import suppress
from typing import Any, cast

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError, ResponseError


class Connections:
    """The connections of a pool, kept between commands.

    redis-py locks its pool, checks the connection and reports to its observers whenever a
    connection leaves the pool or returns, which together take longer than a command. It also packs
    commands in Python. The caller bounds the number of commands at a time.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: list[AbstractConnection] = []

    async def execute(self, *command: bytes | str | int) -> Any:
        """Send the command, and return its answer.

        If the connection is dead, the command is sent again on a new one.

        Raises:
            RedisError, OSError, TimeoutError: Redis does not answer, or refuses the command.
        """
        packed = pack_command(cast("tuple[Any]", command))  # Its stub allows one word only.
        connection = self._idle.pop() if self._idle else await self._new_connection()

        async def exchange() -> Any:
            if not connection.is_connected:  # With Sentinel, this finds the present primary.
                await cast("Any", connection).connect()
            await connection.send_packed_command(packed)
            return await connection.read_response()

        async def disconnect(_error: Exception) -> None:
            await connection.disconnect()

        try:
            answer = await connection.retry.call_with_retry(exchange, disconnect)
        except ResponseError:  # This is an answer too.
            self._idle.append(connection)
            raise
        except BaseException:
            # The others may be connected to the same dead server.
            await self._release([connection, *self._idle])
            raise
        self._idle.append(connection)
        return answer

    async def reconnect(self) -> None:
        """Let every later command use a new connection."""
        await self._release(self._idle)

    async def _new_connection(self) -> AbstractConnection:
        pool: Any = self._pool
        return cast("AbstractConnection", await pool.get_connection())

    async def _release(self, connections: list[AbstractConnection]) -> None:
        self._idle = []
        for connection in connections:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)
