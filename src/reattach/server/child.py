"""One of several processes that share a port: ``python -m reattach.server.child``.

``workers`` starts it. Its standard input says what to do: first its settings, then commands, a line
each; that it ends means that nobody is there any more to give them. On standard output it reports
once, in a line: that it is ready, or why it can not start.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import IO, Final, cast

import structlog
import uvloop
from pydantic import SecretStr

from reattach.domain.errors import ReattachError
from reattach.domain.limits import CLOSE_SECONDS
from reattach.observe import configure_logging
from reattach.server.process import ShutdownCommand, serve
from reattach.server.tune_gc import tune_gc
from reattach.settings import Settings

READY: Final = "ready"
FAILED: Final = "failed"

_ORPHAN_SECONDS: Final = 2.0 * CLOSE_SECONDS
"""How long a child may take to end by itself once it is alone."""


def main() -> None:
    """Serve until told to stop; status 1 if it can not start."""
    tune_gc()
    # What libraries print must not be taken for a report.
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    told = _lines(0)
    first = next(told, None)
    if first is None:
        sys.exit(1)  # Whoever started it has died meanwhile.
    settings = Settings(**json.loads(first))
    configure_logging(settings.log_format, settings.log_level)
    structlog.contextvars.bind_contextvars(child=os.getpid())
    try:
        uvloop.run(_work(settings, told, report))
    except ReattachError as error:
        _say(report, FAILED, error.detail)
        sys.exit(1)


async def _work(settings: Settings, told: Iterator[str], report: IO[str]) -> None:
    commands: asyncio.Queue[ShutdownCommand] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for command in told:
            loop.call_soon_threadsafe(commands.put_nowait, cast("ShutdownCommand", command))
        loop.call_soon_threadsafe(commands.put_nowait, "hurry")
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)  # Whatever keeps it: a child that nobody can stop must not go on.

    # A thread, since a loop that is stuck would never learn that it is alone.
    threading.Thread(target=listen, name="commands", daemon=True).start()
    await serve(settings, on_ready=lambda url: _say(report, READY, url), commands=_each(commands))


async def _each(commands: "asyncio.Queue[ShutdownCommand]") -> AsyncIterator[ShutdownCommand]:
    while True:
        yield await commands.get()


def _lines(descriptor: int) -> Iterator[str]:
    """Read without a buffer object, whose lock a waiting thread would hold at the exit."""
    pending = b""
    while read := os.read(descriptor, 64 * 1024):
        *whole, pending = (pending + read).split(b"\n")
        for line in whole:
            yield line.decode()


def _say(report: IO[str], what: str, detail: str) -> None:
    print(json.dumps([what, detail]), file=report, flush=True)


def dump_settings(settings: Settings) -> str:
    """The settings as a child is told them: all of them, so that it looks nowhere else."""
    values = settings.model_dump(mode="json")
    for name, value in settings:
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    return json.dumps(values | {"config": None})


if __name__ == "__main__":
    main()
