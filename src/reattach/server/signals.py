"""Draining in a server that belongs to somebody else, which tells its applications too late.

An ASGI server closes its connections before it ends the lifespan, so a stream whose run goes on
would hold it up for ever. So this module handles the signal too.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handle_stop_signals(begin: Callable[[], None]) -> Iterator[None]:
    """Call ``begin`` in the event loop at each SIGTERM and SIGINT that the process handles itself.

    The handlers that are there are called as before, and are put back at the end. Outside of the
    main thread, and for signals that nobody handles, nothing is done.
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
