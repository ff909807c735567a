"""A supervisor for several server processes that share one port; it serves nothing itself.

Each child has its own listening socket on the port (SO_REUSEPORT), and the kernel spreads
connections over them: of 400 that came one by one to two idle children, 210 and 190. With one
inherited socket it was 385 and 15, because the kernel wakes the last waiter first; since streams
are long, that imbalance would last. The kernel removes the socket of a dead child at once.
"""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import structlog

from reattach.domain.backoff import Backoff
from reattach.domain.errors import StartupError
from reattach.meters.scrape import Workers
from reattach.server.inherited import is_inherited
from reattach.server.listener import bind_socket, url_of
from reattach.server.metrics.all_children import LatestFigures, answer_line, collect
from reattach.server.supervision import (
    ASK,
    FIGURES,
    MAX_LINE_BYTES,
    READY,
    ShutdownCommand,
    Start,
)
from reattach.settings import Settings

logger = structlog.get_logger(__name__)

FIRST_DELAY_SECONDS: Final = 0.2
"""The wait before a dead child is replaced."""

LONGEST_DELAY_SECONDS: Final = 30.0
"""The maximum of that wait, which doubles while replacements die or cannot start."""

STEADY_SECONDS: Final = 60.0
"""Uptime after which a child's death no longer counts as a failed start."""


async def supervise(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> bool:
    """Keep ``settings.workers`` processes serving until SIGTERM or SIGINT, then let them drain.

    ``on_ready`` is called with the base URL once all children answer. A child that dies is
    replaced. A second signal cuts the drain short, and a third kills. Returns when all children
    have ended, with whether all exited cleanly. If this process is killed, its children end soon.

    Raises:
        StartupError: The stores or the socket cannot be shared, or a child cannot start. No child
            is left then.
    """
    _require_own_socket(settings)
    _require_shared_stores(settings)
    with _reserve_port(settings.host, settings.port) as listener:
        port: int = listener.getsockname()[1]
        supervisor = _Supervisor(settings.model_copy(update={"port": port}))
        loop = asyncio.get_running_loop()
        for number in signal.SIGTERM, signal.SIGINT:
            loop.add_signal_handler(number, supervisor.stop)
        async with AsyncExitStack() as stack:
            if settings.metrics_port is not None:
                from reattach.server.metrics.port import metrics_port  # imports a web server

                await stack.enter_async_context(metrics_port(settings, supervisor.figures))
            if await supervisor.start() and on_ready is not None:
                on_ready(url_of(listener))
            return await supervisor.keep()


def _require_own_socket(settings: Settings) -> None:
    if is_inherited(settings.fd):
        raise StartupError(
            f"REATTACH_WORKERS is {settings.workers}, and the listening socket is inherited. "
            "Several processes cannot share it evenly: one of them would get nearly all clients.",
            remedy="Set REATTACH_WORKERS to 1, or let the server open its own port: disable the "
            ".socket unit, and unset REATTACH_FD.",
        )


def _require_shared_stores(settings: Settings) -> None:
    if settings.stores is None:
        raise StartupError(
            f"REATTACH_WORKERS is {settings.workers}, and several processes need shared stores.",
            remedy="Set REATTACH_DATABASE_URL (postgresql://…) and REATTACH_LOG_URL (redis://…), "
            "or set REATTACH_WORKERS to 1.",
        )


def _reserve_port(host: str, port: int) -> socket.socket:
    """Bind the port so that only children of this process can share it.

    The socket is bound exclusively and becomes shareable afterwards, so two servers never share a
    port by accident.
    """
    listener = bind_socket(host, port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return listener


class _Supervisor:
    """The children, each with a task that replaces it."""

    def __init__(self, settings: Settings) -> None:
        self._count = settings.workers
        self._settings = settings
        self._children: list[_Child] = []
        self._signals = 0
        self._stopping = asyncio.Event()

    async def start(self) -> bool:
        """Return True when all children are ready, False if they were stopped before that.

        Those that were ready then may have clients already, and drain. Raises StartupError if a
        child cannot start, after the others have ended.
        """
        starting = [asyncio.create_task(self._start_child(worker)) for worker in range(self._count)]
        try:
            await asyncio.gather(*starting)
        except StartupError:
            if self._stopping.is_set():
                await asyncio.wait(starting)
                return False
            await self._kill_all(starting)
            if not self._stopping.is_set():
                raise
        return not self._stopping.is_set()

    async def keep(self) -> bool:
        """Return after ``stop`` when all children have ended, with whether each exited cleanly."""
        return all(await asyncio.gather(*(self._keep(child) for child in list(self._children))))

    async def figures(self) -> Workers:
        """Return the figures of the children that are ready, for the metrics."""
        return await collect(lambda: [child for child in self._children if child.ready])

    async def _answer(self, child: "_Child") -> None:
        """Send the child the figures of all, for which it asked."""
        child.write(answer_line(await self.figures()))

    def stop(self) -> None:
        """Drain the children; the second call cuts the drain short, and the third kills them."""
        self._signals += 1
        self._stopping.set()
        for child in self._children:
            if self._signals > 2 or not child.ready:
                child.kill()
            else:
                child.send_command("drain" if self._signals == 1 else "hurry")

    async def _start_child(self, worker: int) -> "_Child":
        child = await _Child.spawn(Start(self._settings, worker), self._answer)
        self._children.append(child)
        if self._stopping.is_set():
            child.kill()
        try:
            await child.wait_ready()
        except StartupError:
            self._children.remove(child)
            raise
        return child

    async def _kill_all(self, starting: "list[asyncio.Task[_Child]]") -> None:
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        while self._children:
            child = self._children.pop()
            child.kill()
            await child.wait()

    async def _keep(self, child: "_Child") -> bool:
        loop = asyncio.get_running_loop()
        backoff = Backoff(FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
        while True:
            started_at = loop.time()
            status = await child.wait()
            self._children.remove(child)
            if self._stopping.is_set():
                return status == 0
            logger.error("child process ended", pid=child.pid, status=status)
            if loop.time() - started_at > STEADY_SECONDS:
                backoff.reset()
            replacement = None
            while replacement is None:
                await backoff.wait(unless_set=self._stopping)
                if self._stopping.is_set():
                    return True
                replacement = await self._start_replacement(child.worker, backoff.seconds)
            child = replacement

    async def _start_replacement(self, worker: int, delay_seconds: float) -> "_Child | None":
        try:
            child = await self._start_child(worker)
        except StartupError as error:
            if not self._stopping.is_set():
                retry = round(delay_seconds, 1)
                logger.error("child process cannot start", reason=error.detail, retry_seconds=retry)  # noqa: TRY400  the reason says it all
            return None
        logger.info("child process replaced", pid=child.pid)
        return child


class _Child:
    """A server process, with the pipes to and from it."""

    def __init__(
        self, process: Process, worker: int, on_ask: Callable[["_Child"], Awaitable[None]]
    ) -> None:
        self._process = process
        self._on_ask = on_ask
        self._tasks: set[asyncio.Task[None]] = set()
        self.pid = process.pid
        self.worker = worker
        """Its slot, from 0, which its replacement gets."""
        self.ready = False
        self.figures = LatestFigures()

    @classmethod
    async def spawn(cls, start: Start, on_ask: Callable[["_Child"], Awaitable[None]]) -> "_Child":
        """Start a child. ``on_ask`` is called when it asks for the figures of all children."""
        # A session of its own, so that Ctrl-C in a terminal signals only the supervisor.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "reattach.server.child"),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        child = cls(process, start.worker, on_ask)
        child.write(start.dump())
        return child

    async def wait_ready(self) -> None:
        """Wait until the child answers. Raises StartupError if it ends first."""
        assert self._process.stdout is not None
        report = await self._process.stdout.readline()
        what, detail = json.loads(report) if report else (None, None)
        if what == READY:
            self.ready = True
            self._start_task(self._read())
            return
        status = await self._process.wait()
        raise StartupError(
            detail or f"A child process ended with status {status} before it was ready.",
            remedy="" if detail else "Look at its log lines above.",
        )

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self) -> None:
        """Read the messages of the child until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            kind, detail = json.loads(line)
            if kind == FIGURES:
                self.figures.receive(detail)
            elif kind == ASK:
                self._start_task(self._ask())

    async def _ask(self) -> None:
        await self._on_ask(self)

    def send_command(self, command: ShutdownCommand) -> None:
        self.write(command.encode() + b"\n")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        return await self._process.wait()

    def write(self, line: bytes) -> None:
        """Send a message, or nothing if the child is gone."""
        assert self._process.stdin is not None
        with suppress(OSError):  # The child is gone, which ``wait`` reports.
            self._process.stdin.write(line)
