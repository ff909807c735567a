"""A port that serves the metrics and nothing else, without a key."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
import uvicorn
from typing_extensions import override

from reattach.domain.errors import StartupError
from reattach.http.api.metrics.response import metrics_app
from reattach.http.middleware.loopback import is_loopback
from reattach.meters.scrape import Workers
from reattach.server.listener import listen, url_of
from reattach.settings import Settings

logger = structlog.get_logger(__name__)

_MOST_REQUESTS: Final = 20
"""Requests at a time; further ones get 503."""


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
        server = _PortServer(
            uvicorn.Config(
                metrics_app(ask_all, is_local=is_loopback(settings.metrics_host)),
                loop="none",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_REQUESTS,
                timeout_graceful_shutdown=1,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="metrics port")
        logger.info("metrics", url=f"{url_of(listener)}/metrics")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait({serving})


class _PortServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the process."""

    @contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        yield
