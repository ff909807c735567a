"""The tenants of a database."""

import builtins
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Table

from reattach.domain.ids import RunId, TenantId
from reattach.records.base import Actor
from reattach.records.repository import Repository
from reattach.records.tenants.deletion import (
    Batch,
    active_runs,
    delete_batch,
    remaining,
    revoke_all,
)
from reattach.records.tenants.export import ExportPage, page_after, runs_with_logs
from reattach.records.tenants.use import Use, tenants_after, uses_of


class Tenants(Repository):
    """All tenants. A tenant exists while a row names it."""

    async def list(self, *, limit: int, after: str = "") -> builtins.list[Use]:
        """List tenants in the order of their ids with their use, after the tenant ``after``."""
        now = self._clock.now()

        def read(connection: Connection) -> builtins.list[Use]:
            return uses_of(connection, tenants_after(connection, after, limit), now)

        return await self._database.in_read(read)

    async def export_page(self, table: Table, tenant: TenantId, after: int) -> ExportPage:
        """Return the next rows of a table of ``EXPORTED`` for an export: see ``page_after``."""
        return await self._database.in_read(page_after, table, tenant, after)

    async def runs_with_logs(
        self, tenant: TenantId, after: int, up_to: int
    ) -> tuple[Sequence[RunId], int | None]:
        """Return runs whose logs may exist, for an export: see ``export.runs_with_logs``."""
        return await self._database.in_read(runs_with_logs, tenant, after, up_to)

    async def revoke_all(self, tenant: TenantId, *, by: Actor) -> int:
        """Revoke the keys and tokens of the tenant, and note that its deletion begins.

        Returns the number of keys that were valid.
        """
        return await self._database.in_write(revoke_all, tenant, by, self._clock.now())

    async def delete_batch(self, table: Table, tenant: TenantId, *, active_too: bool) -> Batch:
        """Delete the first rows of the tenant in one table: see ``deletion.delete_batch``."""
        return await self._database.in_write(
            delete_batch, table, tenant, self._clock.now(), active_too=active_too
        )

    async def active_runs(self, tenant: TenantId, *, limit: int) -> builtins.list[RunId]:
        """Return the ids of active runs of the tenant."""
        return await self._database.in_read(active_runs, tenant, limit)

    async def remaining(self, tenant: TenantId) -> Mapping[str, int]:
        """Return the number of rows of the tenant in each table that has some."""
        return await self._database.in_read(remaining, tenant)

    async def use(self, tenant: TenantId) -> Use:
        """Return the use of one tenant; all counts are 0 if it has no rows."""
        return (await self._database.in_read(uses_of, [tenant], self._clock.now()))[0]
