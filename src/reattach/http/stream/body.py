"""The body of a response that one task writes: under any server, or on a lent connection."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.types import Receive, Send
from typing_extensions import override

from reattach.http.stream.delivery import Connection


class Body(ABC):
    """The body of a response whose head was sent. Use it in one task."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._on_disconnect: Callable[[], object] = lambda: None
        self.gone = False
        """The client is gone."""

    def on_disconnect(self, call: Callable[[], object]) -> None:
        """Call ``call`` when the client goes away."""
        self._on_disconnect = call

    def _disconnect(self) -> None:
        self.gone = True
        self._on_disconnect()

    @abstractmethod
    async def begin(self) -> None:
        """Send the head at once."""

    @abstractmethod
    async def write(self, body: bytes) -> None:
        """Write when there is room; does nothing if the client is gone.

        Raises:
            TimeoutError: The client reads nothing for ``stall_seconds``.
        """

    @abstractmethod
    async def finish(self) -> None:
        """End the body, which is then complete."""

    @abstractmethod
    def abort(self) -> None:
        """Stop without the end of the body, so that the client sees that it is incomplete."""


class AsgiBody(Body):
    """A body sent through ``send``, under any ASGI server."""

    def __init__(self, send: Send, receive: Receive, stall_seconds: float) -> None:
        super().__init__(stall_seconds)
        self._send = send
        self._listener = asyncio.create_task(self._listen(receive))

    async def _listen(self, receive: Receive) -> None:
        """Wait for the client to disconnect, because ``send`` does not report that."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._disconnect()

    @override
    async def begin(self) -> None:
        """Do nothing: the server decides when it sends the head."""

    @override
    async def write(self, body: bytes) -> None:
        async with asyncio.timeout(self._stall_seconds):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    @override
    async def finish(self) -> None:
        self._listener.cancel()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    @override
    def abort(self) -> None:
        self._listener.cancel()  # Without the end of the body, the server drops the connection.


class LentBody(Body):
    """A body on a lent connection, which bounds by itself how long a client reads nothing."""

    def __init__(self, connection: Connection, stall_seconds: float) -> None:
        super().__init__(stall_seconds)
        self._connection = connection
        self._room = asyncio.Event()
        connection.detach()
        connection.on_disconnect(self._disconnect)

    @override
    def _disconnect(self) -> None:
        super()._disconnect()
        self._room.set()

    @override
    async def begin(self) -> None:
        self._connection.flush()

    @override
    async def write(self, body: bytes) -> None:
        while not self.gone and not self._connection.is_writable():
            self._room.clear()
            self._connection.on_writable(self._room.set)
            await self._room.wait()
        self._connection.on_writable(None)
        if self.gone and self._connection.stalled:
            raise TimeoutError
        self._connection.write(body)

    @override
    async def finish(self) -> None:
        self._connection.on_disconnect(None)
        self._connection.finish()

    @override
    def abort(self) -> None:
        self._connection.on_disconnect(None)
        self._connection.abort()
