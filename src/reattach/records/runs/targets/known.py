"""Targets that are remembered until anything is committed to the SQLite file."""

import asyncio

from reattach.domain.ids import RunId, TenantId
from reattach.domain.limits import KNOWN_TARGETS
from reattach.records.base import Target
from reattach.records.database.database import Database
from reattach.records.runs.targets.queries import SHORT_BY_ID, SHORT_BY_OTID


class KnownTargets:
    """Finds targets without waiting, at most KNOWN_TARGETS of them without a query.

    They are forgotten when any program has committed anything to the file. SQLite is asked for that
    once in a tick of the event loop: a request that is read in a tick was sent before the tick
    began, so it cannot know of a later commit.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._targets: dict[tuple[TenantId, RunId | None, str | None], Target] = {}
        self._version: int | None = None
        """The state of the file that the targets are from; None: unknown."""
        self._is_checked = False
        """Whether the version has been checked in this tick."""

    def find(
        self, tenant: TenantId, *, run_id: RunId | None = None, otid: str | None = None
    ) -> Target | None:
        """Return a target without its trace. None: ask the methods of ``Runs`` that wait."""
        if not self._is_checked:
            self._check()
        key = (tenant, run_id, otid)
        target = self._targets.get(key)
        if target is None:
            target = self._read(tenant, run_id, otid)
            if target is not None and self._version is not None:
                if len(self._targets) >= KNOWN_TARGETS:
                    self._targets.clear()
                self._targets[key] = target
        return target

    def _check(self) -> None:
        version = self._database.version_at_once()
        if version is None or version != self._version:
            self._targets.clear()
            self._version = version
        self._is_checked = True
        asyncio.get_running_loop().call_soon(self._begin_tick)

    def _begin_tick(self) -> None:
        self._is_checked = False

    def _read(self, tenant: TenantId, run_id: RunId | None, otid: str | None) -> Target | None:
        statement = SHORT_BY_OTID if run_id is None else SHORT_BY_ID
        values = {"tenant": tenant, "run_id": run_id, "otid": otid}
        rows = self._database.run_at_once(statement, values)
        if not rows or len(rows) > 1:
            return None
        found_id, status, background = rows[0]
        return Target(found_id, tenant, status, background)
