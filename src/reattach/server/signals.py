"""The signals that stop a server: its own, or a foreign ASGI server in which Reattach is mounted.

ASGI servers close their connections before they end the lifespan, so one open stream would block
the shutdown forever. Reattach therefore handles the stop signals there too.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def capture_stop_signals(handle: Callable[[], bool]) -> Iterator[None]:
    """Call ``handle`` at each SIGTERM and SIGINT instead of their previous handlers.

    Each signal for which it returned true is raised again on exit, for the previous handlers. Does
    nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    again: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if handle():
            again.append(number)

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for captured in reversed(again):
        signal.raise_signal(captured)


@contextmanager
def handle_stop_signals(begin: Callable[[], None]) -> Iterator[None]:
    """Call ``begin`` on the event loop at each SIGTERM and SIGINT that the process handles itself.

    Calls the previous handlers as before, and restores them on exit. Does nothing outside the main
    thread, and for signals without a handler.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[int, tuple[Any, Any]] = {}
    for number in STOP_SIGNALS:
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
