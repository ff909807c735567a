"""The body of a response that one task writes: under any server, or on a lent connection."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Message, Receive, Send
from typing_extensions import override

CONNECTION_EXTENSION: Final = "reattach.connection"
"""ASGI extension that provides the ``Connection`` of a request."""


Piece = bytes | memoryview
"""Part of a body. The memory behind a memoryview does not change any more."""


class Connection(Protocol):
    """The client connection, lent by the server for one response."""

    async def begin(self, send: Send, start: Message) -> None:
        """Send the head ``start``, as ``send`` would; it may be held back until more is sent."""

    def detach(self) -> None:
        """Detach the response, which has begun, from the ASGI application.

        From now on it ends with ``finish`` or ``abort``, not when the application returns.
        """

    def flush(self) -> None:
        """Send a head that is held back, because no body follows at once."""

    def write(self, *body: Piece) -> None:
        """Send more of the body; does nothing if the client is gone."""

    def try_write(self, body: Piece) -> bool:
        """Write unless the client is gone or there is no room; return whether it was written."""

    def finish(self, *rest: Piece) -> None:
        """Send the rest of the body, which is then complete, and allow the next request."""

    def abort(self) -> None:
        """Drop the connection with everything unsent."""

    def is_writable(self) -> bool:
        """Return whether the connection accepts a write without buffering in this process."""

    def on_writable(self, call: Callable[[], None] | None) -> None:
        """Call ``call`` once when there is room again; None cancels that."""

    @property
    def stalled(self) -> bool:
        """Whether the server dropped the connection because the client read nothing."""

    @property
    def half_closed(self) -> bool:
        """Whether the client has closed its sending side; it may still read."""

    def on_disconnect(self, call: Callable[[], None] | None) -> None:
        """Call ``call`` once when the client is gone, or at once if it is; None cancels that."""

    def on_half_close(self, call: Callable[[], None]) -> None:
        """Call ``call`` once when the client closes its sending side, or at once if it has."""


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

    @property
    def half_closed(self) -> bool:
        """Whether the client is gone, or has closed its sending side and may still read."""
        return self.gone

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

    @property
    @override
    def half_closed(self) -> bool:
        return self.gone or self._connection.half_closed

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
