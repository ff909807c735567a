"""Ends the reading of a body when its response is closed.

The SDKs of providers close a response whose stream reports an error, but leave the generators that
read it to the garbage collector. If a thread collects them while the event loop closes them, Python
prints "async generator already executing".
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from types import AsyncGeneratorType

import httpx2


async def end_reading_on_close(response: httpx2.Response) -> None:
    """Change ``response`` so that closing it ends the reading of its body; a hook of a client."""
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Body(response.stream)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream
        self._reading: AsyncIterator[bytes] | None = None

    @property
    def elapsed(self) -> timedelta | None:
        """The time of request and response once both are over; ``response.elapsed`` reads it."""
        return getattr(self._stream, "elapsed", None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._reading = aiter(self._stream)
        return self._reading

    async def aclose(self) -> None:
        reading, self._reading = self._reading, None
        # A generator that runs at this moment is ended by its own reader.
        if isinstance(reading, AsyncGeneratorType) and not reading.ag_running:
            await reading.aclose()
        await self._stream.aclose()
