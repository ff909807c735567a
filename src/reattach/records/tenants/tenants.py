"""The tenants of a database."""

import builtins

from sqlalchemy import Connection

from reattach.domain.ids import TenantId
from reattach.records.repository import Repository
from reattach.records.tenants.use import Use, tenants_after, uses_of


class Tenants(Repository):
    """All tenants. A tenant exists while a row names it."""

    async def list(self, *, limit: int, after: str = "") -> builtins.list[Use]:
        """List tenants in the order of their ids with their use, after the tenant ``after``."""
        now = self._clock.now()

        def read(connection: Connection) -> builtins.list[Use]:
            return uses_of(connection, tenants_after(connection, after, limit), now)

        return await self._database.in_read(read)

    async def use(self, tenant: TenantId) -> Use:
        """Return the use of one tenant; all counts are 0 if it has no rows."""
        return (await self._database.in_read(uses_of, [tenant], self._clock.now()))[0]
