"""Several processes that share one port, and the one that keeps them: it serves nothing itself.

Each worker has a listening socket of its own on the port (SO_REUSEPORT), and the kernel spreads
connections over them: of 400 that came one by one to two idle workers, 210 and 190. With one socket
that all inherit it was 385 and 15, since whoever waits last is woken first; streams last, so that
would stay so. A socket that dies with its worker is at once left out by the kernel.
"""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from reattach.domain.errors import StartupError
from reattach.server.child import READY, told_settings
from reattach.server.process import Order, bound, url_of
from reattach.settings import Settings

logger = structlog.get_logger(__name__)

FIRST_DELAY_SECONDS: Final = 0.2
"""The wait before a worker that died is replaced."""

LONGEST_DELAY_SECONDS: Final = 30.0
"""Up to which the wait doubles while replacements die or can not start."""

STEADY_SECONDS: Final = 60.0
"""A worker that lived so long did not die of how it was started."""


async def supervise(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> bool:
    """Keep ``settings.workers`` processes serving until SIGTERM or SIGINT, then let them drain.

    ``on_ready`` is told the base URL once all of them answer. A worker that dies is replaced. A
    second signal cuts the drain short, and a third kills. Returns when all have ended, with
    whether they did so by themselves. They end soon when this process is killed.

    Raises StartupError, with no worker left, for stores that can not be shared, and if a worker
    can not start at first.
    """
    _require_shared_stores(settings)
    with _held(settings.host, settings.port) as place:
        port: int = place.getsockname()[1]
        crew = _Crew(settings.model_copy(update={"port": port}))
        loop = asyncio.get_running_loop()
        for number in signal.SIGTERM, signal.SIGINT:
            loop.add_signal_handler(number, crew.stop)
        if await crew.start() and on_ready is not None:
            on_ready(url_of(place))
        return await crew.keep()


def _require_shared_stores(settings: Settings) -> None:
    if settings.stores is None:
        raise StartupError(
            f"{settings.workers} workers need stores that processes can share. Set "
            "REATTACH_DATABASE_URL (postgresql://…) and REATTACH_LOG_URL (redis://…), or serve "
            "with one worker."
        )


def _held(host: str, port: int) -> socket.socket:
    """The port, for the workers of this process only.

    Bound alone, and shared from then on: another server that wants the port alone is refused, as
    this one is while another has it.
    """
    place = bound(host, port)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return place


class _Crew:
    """The workers, each in a task that replaces it."""

    def __init__(self, settings: Settings) -> None:
        self._count = settings.workers
        self._told = told_settings(settings).encode() + b"\n"
        self._workers: list[_Worker] = []
        self._signals = 0
        self._stopping = asyncio.Event()

    async def start(self) -> bool:
        """Return when all are ready; False if they were stopped meanwhile.

        Raises StartupError if one can not start, when the others are gone too.
        """
        starting = [asyncio.create_task(self._started()) for _ in range(self._count)]
        try:
            await asyncio.gather(*starting)
        except StartupError:
            await self._kill_all(starting)
            if not self._stopping.is_set():
                raise
        return not self._stopping.is_set()

    async def keep(self) -> bool:
        """Return when all have ended after ``stop``; whether each ended well."""
        return all(await asyncio.gather(*(self._keep(worker) for worker in list(self._workers))))

    def stop(self) -> None:
        """Let the workers drain; called again, hurry; and again, kill them."""
        self._signals += 1
        self._stopping.set()
        for worker in self._workers:
            if self._signals > 2 or not worker.ready:
                worker.kill()
            else:
                worker.tell("drain" if self._signals == 1 else "hurry")

    async def _started(self) -> "_Worker":
        worker = await _Worker.spawned(self._told)
        self._workers.append(worker)
        if self._stopping.is_set():
            worker.kill()
        try:
            await worker.get_ready()
        except StartupError:
            self._workers.remove(worker)
            raise
        return worker

    async def _kill_all(self, starting: "list[asyncio.Task[_Worker]]") -> None:
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        while self._workers:
            worker = self._workers.pop()
            worker.kill()
            await worker.ended()

    async def _keep(self, worker: "_Worker") -> bool:
        loop = asyncio.get_running_loop()
        delay_seconds = FIRST_DELAY_SECONDS
        while True:
            started_at = loop.time()
            status = await worker.ended()
            self._workers.remove(worker)
            if self._stopping.is_set():
                return status == 0
            logger.error("a worker has ended", pid=worker.pid, status=status)
            if loop.time() - started_at > STEADY_SECONDS:
                delay_seconds = FIRST_DELAY_SECONDS
            replacement = None
            while replacement is None:
                if await self._is_stopped_within(delay_seconds):
                    return True
                delay_seconds = min(2 * delay_seconds, LONGEST_DELAY_SECONDS)
                replacement = await self._replacement(delay_seconds)
            worker = replacement

    async def _replacement(self, delay_seconds: float) -> "_Worker | None":
        try:
            worker = await self._started()
        except StartupError as error:
            if not self._stopping.is_set():
                retry = round(delay_seconds, 1)
                logger.error("a worker can not start", reason=error.detail, retry_seconds=retry)  # noqa: TRY400  the reason is told
            return None
        logger.info("a worker was replaced", pid=worker.pid)
        return worker

    async def _is_stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()


class _Worker:
    """A process that serves, with the pipes to and from it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.ready = False

    @classmethod
    async def spawned(cls, told: bytes) -> "_Worker":
        # A session of its own: Ctrl-C in a terminal is for the process that keeps them.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "reattach.server.child"),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )
        worker = cls(process)
        worker._write(told)
        return worker

    async def get_ready(self) -> None:
        """Raises StartupError if the worker ends instead."""
        assert self._process.stdout is not None
        said = await self._process.stdout.readline()
        what, detail = json.loads(said) if said else (None, None)
        if what == READY:
            self.ready = True
            return
        status = await self._process.wait()
        raise StartupError(
            detail or f"A worker ended with status {status} before it was ready. Look at its log."
        )

    def tell(self, order: Order) -> None:
        self._write(order.encode() + b"\n")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        return await self._process.wait()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # It is gone, which ``ended`` tells.
            self._process.stdin.write(line)
