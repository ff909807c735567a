"""Draining inside a foreign ASGI server, which ends the lifespan too late for that.

ASGI servers close their connections before they end the lifespan, so one open stream would block
the shutdown forever. This module therefore handles the stop signals too.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handle_stop_signals(begin: Callable[[], None]) -> Iterator[None]:
    """Call ``begin`` on the event loop at each SIGTERM and SIGINT that the process handles itself.

    Calls the previous handlers as before, and restores them on exit. Does nothing outside the main
    thread, and for signals without a handler.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[int, tuple[Any, Any]] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if callable(before):
            ours = _chained(before, loop, begin)
            try:
                signal.signal(number, ours)
            except ValueError:  # not the main thread
                break
            replaced[number] = (ours, before)
    try:
        yield
    finally:
        for replacement, (ours, before) in replaced.items():
            if signal.getsignal(replacement) is ours:
                signal.signal(replacement, before)


def _chained(
    before: Callable[[int, FrameType | None], Any],
    loop: asyncio.AbstractEventLoop,
    begin: Callable[[], None],
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(begin)
        before(number, frame)

    return handle
