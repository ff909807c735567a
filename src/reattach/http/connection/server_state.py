"""The state that all connections of a server share."""

import asyncio
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Final

import structlog

logger = structlog.get_logger(__name__)

_DATE_SECONDS: Final = 1.0
"""How often the date of the responses changes."""

_POLL_SECONDS: Final = 0.02
"""How often a server that stops looks whether its connections are closed."""


@dataclass(slots=True)
class ServerState:
    connections: set[Any] = field(default_factory=set)
    """Open ones, of type HttpConnection."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """The requests that the application is answering."""
    default_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """The first headers of every response."""
    _date: asyncio.TimerHandle | None = None

    def keep_date(self) -> None:
        """Give responses the present date, until the server is closed."""
        date = formatdate(time.time(), usegmt=True).encode()
        self.default_headers = [(b"date", date)]
        self._date = asyncio.get_running_loop().call_later(_DATE_SECONDS, self.keep_date)

    async def close(self, seconds: float, hurry: asyncio.Event) -> None:
        """Close each connection as soon as its response is complete.

        Requests that have no whole response after that time are cancelled. ``hurry`` ends the wait.
        """
        for connection in [*self.connections]:
            connection.shutdown()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self._is_busy and not hurry.is_set() and loop.time() < until:  # noqa: ASYNC110  sets have no event
            await asyncio.sleep(_POLL_SECONDS)
        if self._is_busy and not hurry.is_set():
            logger.warning("requests cancelled", requests=len(self.tasks), waited=seconds)
            for task in self.tasks:
                task.cancel()
        if self._date is not None:
            self._date.cancel()

    @property
    def _is_busy(self) -> bool:
        return bool(self.connections or self.tasks)
