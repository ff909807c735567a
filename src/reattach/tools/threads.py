"""Threads for the functions of tools, which nobody can make return."""

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from reattach.domain.errors import ToolError
from reattach.domain.ids import TenantId
from reattach.domain.limits import MAX_TENANT_TOOL_THREADS, MAX_TOOL_THREADS

Result = TypeVar("Result")


class Threads:
    """Runs functions beside the event loop, in threads that keep no process from its end.

    The pool that asyncio has would be used up by functions that hang, and waited for at exit.
    """

    def __init__(self) -> None:
        self._busy = 0
        self._by_tenant: Counter[TenantId | None] = Counter()

    async def run(self, function: Callable[[], Result], tenant: TenantId | None = None) -> Result:
        """Run it in a thread of its own. Being cancelled stops the waiting, not the function.

        A tenant has a part of the threads, so that its calls that hang leave some for others.
        Raises what the function raises, and ToolError while too many are running.
        """
        if self._by_tenant[tenant] >= MAX_TENANT_TOOL_THREADS and tenant is not None:
            raise ToolError(
                f"{self._by_tenant[tenant]} earlier calls of your tools are still running. "
                "Try again later."
            )
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
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
            ended.set()

        def work() -> None:
            try:
                results.append(context.run(function))
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                errors.append(error)
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(end)

        self._busy += 1
        self._by_tenant[tenant] += 1
        threading.Thread(target=work, name="tool", daemon=True).start()
        await ended.wait()
        if errors:
            raise errors[0]
        return results[0]
