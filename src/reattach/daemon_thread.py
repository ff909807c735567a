"""Functions that block, each in a daemon thread of its own beside the event loop.

Those that hang would use up asyncio's own pool, which is also waited for at exit.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(
    function: Callable[[], Result], *, name: str, on_end: Callable[[], object] = lambda: None
) -> Result:
    """Run the function in a thread and return its result, or raise its exception.

    Cancellation stops the wait, not the function. ``on_end`` is called on the event loop when the
    function has ended.
    """
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    ended = asyncio.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def end() -> None:
        on_end()
        ended.set()

    def work() -> None:
        try:
            results.append(context.run(function))
        except BaseException as error:  # noqa: BLE001  the waiting side raises it
            errors.append(error)
        with suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(end)

    threading.Thread(target=work, name=name, daemon=True).start()
    await ended.wait()
    if errors:
        raise errors[0]
    return results[0]
