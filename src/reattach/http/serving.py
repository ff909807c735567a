"""The server as a process: its socket, its signals, and how it goes away."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import structlog
import uvicorn

from reattach.engine.base import Engine
from reattach.errors import StartupError
from reattach.http.app import create_app
from reattach.http.assembly import assembled
from reattach.http.auth import is_loopback
from reattach.http.context import Context
from reattach.http.protocol import StreamProtocol
from reattach.limits import CLOSE_SECONDS, LISTEN_BACKLOG, SEND_BUFFER_BYTES
from reattach.settings import Settings

logger = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    *,
    engines: Sequence[Engine] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain (P15) and return.

    ``on_ready`` is told the base URL once the port answers; by then every run that a dead process
    left has its end. ``engines`` go instead of those of the settings. A second signal cuts the
    drain short. Raises StartupError.
    """
    async with assembled(settings, engines=engines) as context:
        await _refuse_open_to_strangers(context)
        listener = _listen(settings.host, settings.port)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = _Server(context, url, on_ready)
        await server.serve(sockets=[listener])


async def _refuse_open_to_strangers(context: Context) -> None:
    settings = context.settings
    if not is_loopback(settings.host) and not await context.records.keys.any():
        raise StartupError(
            f"{settings.host} can be reached from other machines, and no API key exists, so "
            "everybody could use this server. Make a key with `reattach keys create NAME`, "
            "or listen on 127.0.0.1."
        )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections buffer little in the kernel.

    What the kernel has taken is not what the reader has; without the bound it takes megabytes
    for each reader that is gone or slow.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind((host, port))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"{host}:{port} can not be listened on: {error.strerror}. Stop what uses the port, "
            "or choose another one with --port (0 takes a free one)."
        ) from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it closes its port.

    While draining, readers are served on and new ones are let in: only new runs are refused.
    """

    def __init__(self, context: Context, url: str, on_ready: Callable[[str], None] | None) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(context),
                http=StreamProtocol,
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
                backlog=LISTEN_BACKLOG,
                server_header=False,
            )
        )
        self._context = context
        self._url = url
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("ready", url=self._url)
        if self._on_ready is not None:
            self._on_ready(self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second signal ends the drain, and a third the process."""
        if self._draining is not None and self._draining.done():
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._drain_or_hurry)

    def _drain_or_hurry(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
        else:
            self._draining.cancel()

    async def _drain(self) -> None:
        try:
            await self._context.runs.drain(self._context.settings.drain_seconds)
        except asyncio.CancelledError:
            await self._context.runs.drain(0)
        finally:
            self.should_exit = True
