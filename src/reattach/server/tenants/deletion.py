"""The deletion of everything of a tenant in both stores.

Keys come first, so that nobody adds anything. Everything else goes in transactions of a bounded
size; repeating an interrupted deletion finishes it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError, NotFoundError, UnavailableError
from reattach.domain.ids import TenantId
from reattach.domain.limits import KEY_CACHE_SECONDS, LIFE_NOTED_SECONDS
from reattach.log.base import Log
from reattach.records.audit_log import Action
from reattach.records.base import Actor
from reattach.records.records import Records
from reattach.records.tenants.tables import DELETED

_CANCEL_SECONDS: Final = 2 * LIFE_NOTED_SECONDS
"""How long servers may take to end the cancelled runs."""
_LOOK_SECONDS: Final = 0.2
_COUNTED_RUNS: Final = 1000
_CANCELLED_RUNS: Final = 10_000
_CANCELLED_TOGETHER: Final = 100
_PASSES: Final = 3
"""Attempts to find nothing left, because a request that had begun before may still add rows."""

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Deletion:
    """The result of a deletion."""

    rows: Mapping[str, int]
    """The number of deleted rows of each table, without those that went with their parents."""
    logs: int
    """The number of runs whose logs were deleted, or will be."""
    are_logs_left: bool
    """Whether the server that owns the logs deletes them, within about a minute."""


async def delete_tenant(
    records: Records,
    log: Log | None,
    tenant: TenantId,
    clock: Clock,
    *,
    by: Actor,
    cancels: bool = False,
    has_servers: bool = True,
    on_progress: Progress = lambda _: None,
) -> Deletion:
    """Delete every row of the tenant, and the logs of its runs.

    ``log`` is None if a server owns the logs: it deletes them with its next sweep. Active runs are
    cancelled if ``cancels``; without any server, nobody would end them, so they are deleted.

    Raises:
        NotFoundError: Nothing of such a tenant exists.
        ConflictError: Runs are active and may not be cancelled; nothing has changed.
        UnavailableError: The runs did not end, or something still adds rows. Call it again.
    """
    tenants = records.tenants
    if not await tenants.remaining(tenant):
        raise nothing_of(tenant)
    active = await tenants.active_runs(tenant, limit=_COUNTED_RUNS)
    if active and not cancels:
        count = f"{len(active)}{' or more' if len(active) == _COUNTED_RUNS else ''}"
        raise ConflictError(
            f"The tenant {tenant} has active runs ({count}), such as {active[0]}.",
            remedy="Wait until they have ended, or cancel them with --cancel-runs.",
        )
    revoked = await tenants.revoke_all(tenant, by=by)
    may_write_until = clock.monotonic_seconds() + (KEY_CACHE_SECONDS + 1 if revoked else 0)
    deleted = _Deleted(records, log, tenant, clock, on_progress)
    for _ in range(_PASSES):
        if has_servers:
            await _end_runs(records, tenant, clock, by, on_progress)
        await deleted.delete_all(active_too=not has_servers)
        wait_seconds = may_write_until - clock.monotonic_seconds()
        if has_servers and wait_seconds > 0:
            on_progress(f"waiting {wait_seconds:.0f} s until no server accepts the revoked keys")
            await clock.sleep(wait_seconds)
        await records.owners.forget_reports()
        if not await tenants.remaining(tenant):
            counts = dict(deleted.rows)
            await records.audit_log.add(
                by, Action.TENANT_DELETED, subject=tenant, rows=counts, logs=deleted.logs
            )
            return Deletion(counts, deleted.logs, are_logs_left=log is None and deleted.logs > 0)
    left = ", ".join(f"{count} {name}" for name, count in (await tenants.remaining(tenant)).items())
    raise UnavailableError(
        f"Something still adds rows to the tenant {tenant}: {left} are left.",
        remedy="Stop the servers that accept requests without keys, and delete it again.",
    )


async def _end_runs(
    records: Records, tenant: TenantId, clock: Clock, by: Actor, on_progress: Progress
) -> None:
    """Cancel the active runs and wait until servers have ended them."""
    give_up_at = clock.monotonic_seconds() + _CANCEL_SECONDS
    cancelled: set[str] = set()
    while active := await records.tenants.active_runs(tenant, limit=_CANCELLED_RUNS):
        new = [run_id for run_id in active if run_id not in cancelled]
        for start in range(0, len(new), _CANCELLED_TOGETHER):
            some = new[start : start + _CANCELLED_TOGETHER]
            on_progress(f"cancelling {len(new)} active runs")
            await records.runs.request_cancel(tenant, some, by=by)
            cancelled.update(some)
        if clock.monotonic_seconds() > give_up_at:
            raise UnavailableError(
                f"{len(active)} runs of the tenant {tenant} have not ended in "
                f"{_CANCEL_SECONDS:.0f} s, such as {active[0]}.",
                remedy="Check that the servers run, and delete the tenant again.",
            )
        await clock.sleep(_LOOK_SECONDS)


def nothing_of(tenant: TenantId) -> NotFoundError:
    """Return the error for a tenant of which there is nothing, perhaps a misspelled one."""
    return NotFoundError(
        f"Nothing of the tenant {tenant} exists.",
        remedy="`reattach tenants list`, with the same settings, shows the tenants.",
    )


class _Deleted:
    """Deletes rows and logs of a tenant, and counts them."""

    def __init__(
        self,
        records: Records,
        log: Log | None,
        tenant: TenantId,
        clock: Clock,
        on_progress: Progress,
    ) -> None:
        self._records = records
        self._clock = clock
        self._log = log
        self._tenant = tenant
        self._on_progress = on_progress
        self.rows: Counter[str] = Counter()
        self.logs = 0

    async def delete_all(self, *, active_too: bool) -> None:
        for table in DELETED:
            while True:
                batch = await self._records.tenants.delete_batch(
                    table, self._tenant, active_too=active_too
                )
                if not batch.rows:
                    break
                self.rows[table.name] += batch.rows
                self._on_progress(f"deleted {self.rows[table.name]} {table.name}")
                self.logs += len(batch.logs)
                if self._log is not None and batch.logs:
                    for run_id in batch.logs:
                        await self._log.delete(run_id)
                    now = self._clock.now()
                    await self._records.runs.mark_log_deleted(batch.logs, now)
