"""Threads for the functions of tools, which cannot be interrupted."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from reattach.daemon_thread import Result, in_daemon_thread
from reattach.domain.errors import ToolError
from reattach.domain.ids import TenantId
from reattach.domain.limits import MAX_TENANT_TOOL_THREADS, MAX_TOOL_THREADS


class Threads:
    """Runs a bounded number of functions beside the event loop, in daemon threads."""

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
        self._busy += 1
        self._by_tenant[tenant] += 1
        return await in_daemon_thread(function, name="tool", on_end=partial(self._end, tenant))

    def _end(self, tenant: TenantId | None) -> None:
        self._busy -= 1
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
