"""Threads for the functions of tools, which cannot be interrupted."""

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
    """Runs functions beside the event loop in daemon threads.

    Functions that hang would use up asyncio's own pool, which is also waited for at exit.
    """

    def __init__(self) -> None:
        self._busy = 0
        self._by_tenant: Counter[TenantId | None] = Counter()

    async def run(self, function: Callable[[], Result], tenant: TenantId | None = None) -> Result:
        """Run the function in a thread of its own. Cancellation stops the wait, not the function.

        Each tenant may use a part of the threads, so its hanging calls leave some for others.

        Raises:
            ToolError: Too many calls are running. Exceptions of the function pass through.
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
            with suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(end)

        self._busy += 1
        self._by_tenant[tenant] += 1
        threading.Thread(target=work, name="tool", daemon=True).start()
        await ended.wait()
        if errors:
            raise errors[0]
        return results[0]
