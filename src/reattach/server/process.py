"""The server as a process: its socket, its signals, and its shutdown."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from typing import Any, cast

import structlog
from starlette.types import ASGIApp

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.domain.limits import (
    CLOSE_SECONDS,
    FIRST_REQUEST_POLL_SECONDS,
    FIRST_REQUEST_SECONDS,
)
from reattach.engine.base import Engine
from reattach.http.app import create_app
from reattach.http.connection.capacity import Capacity
from reattach.http.connection.forwarded import ForwardedHeaders
from reattach.http.connection.protocol import Endpoint, HttpConnection, encode_error
from reattach.http.connection.refusals import Refusals
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import State, Timeouts
from reattach.http.connection.watch import Watch
from reattach.http.context import Context
from reattach.http.middleware.loopback import is_loopback
from reattach.http.middleware.pages import Pages
from reattach.server.acceptor import Acceptor, Address
from reattach.server.assembly import assemble
from reattach.server.inherited import take_inherited
from reattach.server.listener import listen, set_connection_options, url_of
from reattach.server.metrics.child import ChildFigures
from reattach.server.metrics.port import metrics_port
from reattach.server.signals import capture_stop_signals
from reattach.server.supervision import ShutdownCommand
from reattach.settings import Settings

logger = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    *,
    engines: Sequence[Engine] | None = None,
    on_ready: Callable[[str], None] | None = None,
    commands: AsyncIterator[ShutdownCommand] | None = None,
    figures: ChildFigures | None = None,
    worker: int = 0,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain (P15) and return.

    ``on_ready`` is called with the base URL once the port answers; by then every run of a dead
    process has been ended. ``engines`` replace those of the settings. A second signal cuts the
    drain short. Raises StartupError.

    A socket that another process keeps open (``settings.fd``, or one that systemd passes) takes the
    place of the host and the port. Clients that connect to it after the drain wait for the next
    server.

    With ``commands`` the process is one of several that share the port. It obeys these, and signals
    only start its drain, because a service manager may signal the whole process group. ``worker``
    is its slot among them, and ``figures`` passes its metrics to their supervisor.
    """
    is_child = commands is not None
    # Before anything is assembled, because that may start other programs.
    inherited = None if is_child else take_inherited(settings.fd)
    if inherited is not None:
        host, port = inherited.getsockname()[:2]
        settings = settings.model_copy(
            update={"fd": inherited.fileno(), "host": host, "port": port}
        )
    with inherited or nullcontext():
        async with AsyncExitStack() as stack:
            assembled = assemble(settings, engines=engines, worker=worker)
            context = await stack.enter_async_context(assembled)
            context.traces.install_globally()
            await _require_key_for_network(context)
            if figures is not None:
                figures.serve(context.scrape)
            else:
                await stack.enter_async_context(metrics_port(settings, context.scrape.all))
            listener = inherited or listen(settings.host, settings.port, shared=is_child)
            server = _Server(context, url_of(listener), on_ready, obeys=is_child)
            obeying = None if commands is None else asyncio.create_task(server.obey(commands))
            await server.serve(listener)
            if obeying is not None:
                obeying.cancel()


async def _require_key_for_network(context: Context) -> None:
    settings = context.settings
    if settings.require_key or await context.records.keys.exist():
        return
    if not is_loopback(settings.host):
        source = "REATTACH_HOST is" if settings.fd is None else "The inherited socket listens on"
        raise StartupError(
            f"{source} {settings.host}, which is not a loopback address, and no API key "
            "exists, so anyone who can reach it could use this server.",
            remedy=f"Create a key with `{settings.command('keys create NAME')}`, or listen on "
            "127.0.0.1.",
        )
    logger.warning(
        "no API key exists: every program on this machine can use this server",
        remedy="Before you put a proxy or tunnel in front of it, create a key: "
        f"{settings.command('keys create NAME')}",
    )


async def _check(settings: Settings) -> Sequence[Diagnostic]:
    from reattach.server.checks.checks import run_checks  # Few servers are ever asked for it.

    return await run_checks(settings, show=None, ask_models=False)


class _Server:
    """Serves connections, and drains before it closes its port.

    While it drains, it serves open streams and accepts new readers; it refuses only new runs.
    """

    def __init__(
        self,
        context: Context,
        url: str,
        on_ready: Callable[[str], None] | None,
        *,
        obeys: bool = False,
    ) -> None:
        settings = context.settings
        self.app = app = create_app(context, checks=partial(_check, settings))
        watch = Watch(Timeouts(settings.stall_seconds))
        self._capacity = Capacity(
            watch, settings.max_connections, settings.max_connections_per_address
        )
        # Inside the application: the fast path runs before it and needs no client address.
        trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
        app.add_middleware(cast("Any", ForwardedHeaders), trusted=trusted)
        self.state = ServerState()
        meters = context.meters
        self._endpoint = Endpoint(
            cast("ASGIApp", app), self.state, watch, self._capacity, meters, app.instant
        )
        self._refusals = Refusals(
            self.state,
            Pages(settings.cors_origins).cors,
            self._capacity.most_refused,
            meters,
        )
        meters.add_source("reattach_connections", self._count_connections)
        meters.add_source("reattach_sent_bytes_total", self._count_sent_bytes)
        connections = self.state.connections
        context.reports.process.connections = lambda: len(connections)
        self._context = context
        self._url = url
        self._on_ready = on_ready
        self._is_inherited = settings.fd is not None
        self._obeys = obeys
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._hurry = asyncio.Event()
        """Ends the wait for the last responses."""

    async def serve(self, listener: socket.socket) -> None:
        """Serve the clients of a listener until ``stop``, and close it."""
        with self.capture_signals():
            acceptor = self._start(listener)
            await self._stopped.wait()
            await self._close(acceptor, listener)

    def stop(self) -> None:
        self._stopped.set()

    def capture_signals(self) -> AbstractContextManager[None]:
        return capture_stop_signals(self._on_signal)

    def _start(self, listener: socket.socket) -> Acceptor:
        self.state.keep_date()
        acceptor = Acceptor(
            listener,
            self._new_protocol,
            admit=self._admit,
            release=self._release,
            # Clients may have connected before the listener had these options.
            prepare=set_connection_options if self._is_inherited else None,
        )
        acceptor.start()
        logger.info("ready", url=self._url)
        if self._on_ready is not None:
            self._on_ready(self._url)
        return acceptor

    def _new_protocol(self, client: Address) -> HttpConnection:
        return self._refusals.connection(client) or HttpConnection(self._endpoint, client)

    def _admit(self, client: Address) -> bytes | None:
        try:
            self._capacity.admit(client[0])
        except TooManyConnectionsError as error:
            self._context.meters.refused.add("connections")
            if not self._refusals.take(client, error):
                return encode_error(error, self.state.default_headers)
        return None

    def _release(self, client: Address) -> None:
        if not self._refusals.leave(client):
            self._capacity.leave(client[0])

    def _count_connections(self) -> list[tuple[tuple[()], float]]:
        return [((), len(self.state.connections))]

    def _count_sent_bytes(self) -> list[tuple[tuple[()], float]]:
        open_bytes = sum(connection.sent_bytes for connection in self.state.connections)
        return [((), self._context.meters.sent_bytes + open_bytes)]

    async def _close(self, acceptor: Acceptor, listener: socket.socket) -> None:
        """Stop accepting, let open requests end, and close."""
        acceptor.close()
        await acceptor.wait_closed()
        if self._is_inherited:
            await self._take_last_requests()
        listener.close()
        await self.state.close(CLOSE_SECONDS, self._hurry)

    async def _take_last_requests(self) -> None:
        """Wait for the requests of clients that were accepted here; others get the next server.

        Closing their connections would reset requests that are on their way.
        """
        until = self._loop.time() + FIRST_REQUEST_SECONDS
        connections = self.state.connections
        while self._loop.time() < until and any(one.state is State.HEAD for one in connections):  # noqa: ASYNC110  a state has no event
            await asyncio.sleep(FIRST_REQUEST_POLL_SECONDS)

    def _on_signal(self) -> bool:
        """Start the drain; the second signal cuts it short, and the third ends the process.

        Returns whether the signal has its usual effect once the server is closed.
        """
        if self._obeys:
            self._loop.call_soon_threadsafe(self._begin_drain)
        elif self._draining is not None and self._draining.done():
            self._loop.call_soon_threadsafe(self._hurry.set)
            return True
        else:
            self._loop.call_soon_threadsafe(self._drain_or_hurry)
        return False

    async def obey(self, commands: AsyncIterator[ShutdownCommand]) -> None:
        """Carry out commands until the first "hurry", which is the last one that has an effect."""
        async for command in commands:
            draining = self._begin_drain()
            if command == "hurry":
                await asyncio.sleep(0)  # A task cancelled before its first step never runs.
                draining.cancel()
                return

    def _drain_or_hurry(self) -> None:
        if self._draining is None:
            self._begin_drain()
        else:
            # Later, because a task that is cancelled before its first step never runs.
            self._loop.call_soon(self._draining.cancel)

    def _begin_drain(self) -> asyncio.Task[None]:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
        return self._draining

    async def _drain(self) -> None:
        try:
            await self._context.runs.drain(self._context.settings.drain_seconds)
        except asyncio.CancelledError:
            await self._context.runs.drain(0)
        finally:
            self.stop()
