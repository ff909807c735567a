"""Large bodies are parsed in a thread: one at a time, and the tenants take turns."""

import asyncio
from typing import Any

from starlette.types import Scope

from reattach.domain.ids import TenantId
from reattach.http.json import parse


class ParseQueue:
    """Parses one body at a time.

    A tenant has at most one place in the queue; its further bodies wait behind that one. So a
    tenant that sends a hundred large bodies delays another tenant's by the time of one.
    """

    def __init__(self) -> None:
        self._parsing = asyncio.Lock()
        self._tenants: dict[TenantId | None, _Line] = {}

    async def parse(self, scope: Scope, body: bytes) -> Any:
        """Parse ``body`` when it is its turn. Raises ValidationFailedError."""
        tenant: TenantId | None = scope.get("reattach.tenant")
        line = self._tenants.setdefault(tenant, _Line())
        line.waiting += 1
        try:
            async with line.first, self._parsing:
                return await asyncio.to_thread(parse, body)
        finally:
            line.waiting -= 1
            if line.waiting == 0:
                del self._tenants[tenant]


class _Line:
    """The bodies of one tenant that are not parsed yet."""

    __slots__ = ("first", "waiting")

    def __init__(self) -> None:
        self.first = asyncio.Lock()
        self.waiting = 0
