"""Parsing of large bodies in a thread, one at a time, fairly among tenants."""

import asyncio
from typing import Any

from starlette.types import Scope

from reattach.domain.ids import TenantId
from reattach.http.json import parse
from reattach.http.middleware.access import ACCESS, Access


class ParseQueue:
    """Parses one body at a time.

    A tenant has at most one place in the queue, and its other bodies wait behind it. So a tenant
    that sends a hundred large bodies delays another tenant's body by only one of them.
    """

    def __init__(self) -> None:
        self._parsing = asyncio.Lock()
        self._tenants: dict[TenantId | None, _Line] = {}

    async def parse(self, scope: Scope, body: bytes) -> Any:
        """Wait in the queue, then parse ``body``. Raises ValidationFailedError."""
        access: Access | None = scope.get(ACCESS)
        tenant = None if access is None else access.tenant
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
