"""One of several processes that share a port: ``python -m reattach.server.child``.

``supervisor`` starts it, and ``supervision`` has the messages between them, which go through its
standard input and output. The end of input means that the supervisor is gone.
"""

import gc

if __name__ == "__main__":
    gc.disable()  # During the imports, as in ``reattach.__main__``.

from reattach.server.imports import import_fastapi, import_structlog

if __name__ == "__main__":
    import_structlog()
    import_fastapi()

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import FrameType
from typing import IO, Final, cast

import structlog
import uvloop

from reattach.domain.errors import ReattachError
from reattach.domain.limits import CLOSE_SECONDS
from reattach.observe import configure_logging
from reattach.server.metrics.child import ChildFigures
from reattach.server.process import serve
from reattach.server.signals import STOP_SIGNALS
from reattach.server.supervision import FAILED, FIGURES, READY, ShutdownCommand, Start
from reattach.server.tune_gc import tune_gc

_ORPHAN_SECONDS: Final = 2.0 * CLOSE_SECONDS
"""How long a child may take to stop after its supervisor is gone."""


def main() -> None:
    """Serve until a command to stop; exit with status 1 if the server cannot start."""
    tune_gc()
    # Output that libraries print must not be read as the report.
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = _lines(0)
    first = next(lines, None)
    if first is None:
        sys.exit(1)  # The supervisor has died in the meantime.
    start = Start.parse(first)
    settings = start.settings
    configure_logging(settings.log_format, settings.log_level)
    structlog.contextvars.bind_contextvars(child=os.getpid())
    outside = _SignalsOutsideServing()
    for number in STOP_SIGNALS:
        signal.signal(number, outside.on_signal)
    try:
        uvloop.run(_serve(start, lines, report, outside))
    except ReattachError as error:
        _report(report, FAILED, error.detail)
        sys.exit(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # The interpreter removes handlers before it exits.


class _SignalsOutsideServing:
    """The handlers of SIGTERM and SIGINT before and after those of the server.

    A service manager may signal every process at any moment, beside the commands of the supervisor.
    """

    def __init__(self) -> None:
        self.has_served = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """End the process, unless it ends anyway: its exit status would say that it had failed."""
        if not self.has_served:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


async def _serve(
    start: Start, lines: Iterator[str], report: IO[str], outside: _SignalsOutsideServing
) -> None:
    commands: asyncio.Queue[ShutdownCommand] = asyncio.Queue()
    figures = ChildFigures(partial(_report, report))
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in lines:
            kind, _, answer = line.partition(" ")
            if kind == FIGURES:
                loop.call_soon_threadsafe(figures.receive, answer)
            else:
                loop.call_soon_threadsafe(commands.put_nowait, cast("ShutdownCommand", kind))
        loop.call_soon_threadsafe(commands.put_nowait, "hurry")
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)  # A child that nobody can stop must not continue, even if its drain hangs.

    def on_ready(url: str) -> None:
        outside.has_served = True
        _report(report, READY, url)

    # A thread, because a blocked event loop would never notice that the supervisor is gone.
    threading.Thread(target=listen, name="commands", daemon=True).start()
    await serve(
        start.settings,
        on_ready=on_ready,
        commands=_each(commands),
        figures=figures,
        worker=start.worker,
    )


async def _each(commands: "asyncio.Queue[ShutdownCommand]") -> AsyncIterator[ShutdownCommand]:
    while True:
        yield await commands.get()


def _lines(descriptor: int) -> Iterator[str]:
    """Yield lines without a buffer object, whose lock a waiting thread would hold at exit."""
    pending = b""
    while read := os.read(descriptor, 64 * 1024):
        *whole, pending = (pending + read).split(b"\n")
        for line in whole:
            yield line.decode()


def _report(report: IO[str], what: str, detail: object) -> None:
    print(json.dumps([what, detail]), file=report, flush=True)


if __name__ == "__main__":
    main()
