"""Threads for the functions of tools, which nobody can make return."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from reattach.errors import ToolError
from reattach.limits import MAX_TOOL_THREADS

Result = TypeVar("Result")


class Threads:
    """Runs functions beside the event loop, in threads that keep no process from its end.

    The pool that asyncio has would be used up by functions that hang, and waited for at exit.
    """

    def __init__(self) -> None:
        self._busy = 0

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run it in a thread of its own. Being cancelled stops the waiting, not the function.

        Raises what the function raises, and ToolError while too many are running.
        """
        if self._busy >= MAX_TOOL_THREADS:
            raise ToolError(
                f"{self._busy} earlier calls of tools are still running. Try again later."
            )
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        results: list[Result] = []
        errors: list[BaseException] = []
        context = contextvars.copy_context()

        def end() -> None:
            self._busy -= 1
            ended.set()

        def work() -> None:
            try:
                results.append(context.run(function))
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                errors.append(error)
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(end)

        self._busy += 1
        threading.Thread(target=work, name="tool", daemon=True).start()
        await ended.wait()
        if errors:
            raise errors[0]
        return results[0]
