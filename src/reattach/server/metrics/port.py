"""A port that serves the metrics and nothing else, without a key."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
from starlette.types import ASGIApp

from reattach.domain.errors import StartupError
from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.http.api.metrics.response import metrics_app
from reattach.http.connection.capacity import Capacity
from reattach.http.connection.protocol import Endpoint, HttpConnection, encode_error
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import Timeouts
from reattach.http.connection.watch import Watch
from reattach.http.middleware.loopback import is_loopback
from reattach.meters.scrape import Workers
from reattach.server.acceptor import Acceptor, Address
from reattach.server.listener import listen, url_of
from reattach.settings import Settings

logger = structlog.get_logger(__name__)

_MOST_CONNECTIONS: Final = 20
"""Connections at a time. Idle ones give way to further ones, which get 503 otherwise."""

_CLOSE_SECONDS: Final = 1.0


@asynccontextmanager
async def metrics_port(
    settings: Settings, ask_all: Callable[[], Awaitable[Workers]]
) -> AsyncIterator[None]:
    """Serve the metrics on a port of their own, if the settings name one, while the context lasts.

    Raises:
        StartupError: The port cannot be used, or there is nothing to show.
    """
    if settings.metrics_port is None:
        yield
        return
    if not settings.metrics:
        raise StartupError(
            f"REATTACH_METRICS_PORT is {settings.metrics_port}, and REATTACH_METRICS is false.",
            remedy="Unset one of them.",
        )
    try:
        listener = listen(settings.metrics_host, settings.metrics_port)
    except StartupError as error:
        raise StartupError(
            error.fact,
            remedy="Choose another REATTACH_METRICS_PORT (0 picks a free one) or "
            "REATTACH_METRICS_HOST.",
        ) from error
    with listener:
        port = _Port(metrics_app(ask_all, is_local=is_loopback(settings.metrics_host)), settings)
        acceptor = Acceptor(listener, port.connect, admit=port.admit, release=port.release)
        port.state.keep_date()
        acceptor.start()
        logger.info("metrics", url=f"{url_of(listener)}/metrics")
        try:
            yield
        finally:
            acceptor.close()
            await acceptor.wait_closed()
            await port.state.close(_CLOSE_SECONDS, asyncio.Event())


class _Port:
    """The connections of the port."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.state = ServerState()
        watch = Watch(Timeouts(settings.stall_seconds))
        self._capacity = Capacity(watch, _MOST_CONNECTIONS, _MOST_CONNECTIONS)
        self._endpoint = Endpoint(app, self.state, watch, self._capacity)

    def admit(self, client: Address) -> bytes | None:
        try:
            self._capacity.admit(client[0])
        except TooManyConnectionsError as error:
            return encode_error(error, self.state.default_headers)
        return None

    def connect(self, client: Address) -> HttpConnection:
        return HttpConnection(self._endpoint, client)

    def release(self, client: Address) -> None:
        self._capacity.leave(client[0])
