"""Commands and answers over a connection that redis-py has made."""

import asyncio
from typing import Any, Final, cast

from hiredis import PushNotification, Reader
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from typing_extensions import override

_UNFINISHED: Final = object()


class Exchange(asyncio.BufferedProtocol):
    """Sends a command at a time over a connection of redis-py, and reads its answer.

    It takes the place of the streams of redis-py, which copy what they receive twice more, and take
    longer than the command: the socket is read into ``buffer``, which exchanges of one event loop
    share, and the parser gets it from there.
    """

    def __init__(self, connection: Any, buffer: bytearray) -> None:
        """``connection`` is one of redis-py, which is connected and is closed by its methods."""
        self._reader = Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_UNFINISHED,
        )
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._answered_at = self._loop.time()
        self._waiting: asyncio.Future[Any] | None = None
        self.is_lost = False
        """The connection is closed, by either side."""
        self._transport: asyncio.Transport = connection._writer.transport
        self._streams = self._transport.get_protocol()
        self._transport.pause_reading()  # The way of reading depends on the protocol.
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    @property
    def idle_seconds(self) -> float:
        """The time since the last answer."""
        return self._loop.time() - self._answered_at

    async def ask(self, packed: bytes) -> Any:
        """Return the answer to a command. There is one at a time.

        Raises:
            RedisError: It is an error, or the connection is lost.
        """
        if self.is_lost:
            raise RedisConnectionError("The connection is closed.")
        waiting = self._waiting = self._loop.create_future()
        try:
            self._transport.write(packed)
            answer = await waiting
        finally:
            self._waiting = None
        self._answered_at = self._loop.time()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @override
    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    @override
    def buffer_updated(self, nbytes: int) -> None:
        # Its stub leaves the other kinds of bytes out.
        self._reader.feed(cast("bytes", self._buffer), 0, nbytes)
        try:
            while (answer := self._reader.gets()) is not _UNFINISHED:
                if not isinstance(answer, PushNotification):
                    self._pass_on(answer)
        except InvalidResponse as error:
            self._pass_on(error)
            self._transport.abort()

    def _pass_on(self, answer: Any) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:  # Nobody knows any more whose the answers are.
            self._transport.abort()
        elif not waiting.done():
            waiting.set_result(answer)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._waiting is not None:
            self._pass_on(RedisConnectionError("The server closed the connection."))
        self._streams.connection_lost(exc)  # ``disconnect`` of redis-py waits for that.
