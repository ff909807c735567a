"""Runs: how they come to be, who owns them, how they end."""

import builtins
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Select, bindparam, delete, exists, func, insert, select, update

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError, ReattachError
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, RunId, TenantId
from reattach.records import lookup
from reattach.records.base import (
    Page,
    RequestKey,
    Run,
    RunCreated,
    RunKnown,
    Settlement,
    Step,
    Target,
    Thread,
)
from reattach.records.database import schema
from reattach.records.database.database import Database, lost_a_race
from reattach.records.database.prepared import PreparedQuery
from reattach.records.paging import SortOrder, page_of
from reattach.records.runs import audit as auditing
from reattach.records.runs import orphans
from reattach.records.runs.admission import admit, known_run, run_of
from reattach.records.runs.audit import Standing
from reattach.records.runs.notifications import CancelRequested, notify
from reattach.records.runs.settlement import settle

_ADMISSIONS: Final = 5
"""Each failed one shows that another process has just created a run of the key or thread."""

NOBODY: Final = ""
"""The owner of a run that was disclaimed: no process registers under it."""

# The look-ups of those who resume, which cost more to build than to run.
_runs, _otids = schema.runs, schema.run_otids
_OWNED: Final = lookup.owned(_runs, bindparam("tenant"))
_BY_ID: Final = _OWNED.where(_runs.c.id == bindparam("run_id"))
_NEWEST: Final = _OWNED.order_by(_runs.c.ordinal.desc()).limit(1)
_BY_OTID: Final = _NEWEST.join(_otids, _otids.c.run_id == _runs.c.id).where(
    _otids.c.tenant == bindparam("tenant"), _otids.c.otid == bindparam("otid")
)
_ACTIVE: Final = _NEWEST.where(_runs.c.thread_key == bindparam("thread_key"), schema.ACTIVE)
_MARK: Final = update(_runs).where(
    _runs.c.id == bindparam("run_id"), _runs.c.token == bindparam("held_token"), schema.ACTIVE
)


def _prepare_target(rows: Select[Any]) -> PreparedQuery:
    columns = (_runs.c.id, _runs.c.tenant, _runs.c.status, _runs.c.background)
    return PreparedQuery(rows.with_only_columns(*columns, maintain_column_froms=True))


_TARGET_BY_ID: Final = _prepare_target(_BY_ID)
_TARGET_BY_OTID: Final = _prepare_target(_BY_OTID)
_ACTIVE_TARGET: Final = _prepare_target(_ACTIVE)

_STEP_FIELDS: Final = tuple(field.name for field in fields(Step))


class Runs:
    """The runs of each tenant. Methods without a tenant are for the server itself."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        tenant: TenantId,
        run: Run,
        key: RequestKey | None,
        otids: Sequence[str],
        *,
        repeated: bool = False,
    ) -> RunCreated | RunKnown:
        """Create the run with its key and OTIDs, all or nothing, unless the key is known.

        Of any number of calls with one key, in any process, exactly one creates its run; the
        others get that run. A key without OTIDs is none. Raises, in this order:
        OtidConflictError if the key is known with another payload, NotFoundError if the agent or
        the conversation is not there, ConversationBusyError while a run of the thread is active,
        PendingApprovalError for anything but the answer while the thread waits for an approval,
        and AnswerRefusedError for an answer that it does not wait for, unless that was given
        before: then it gets the run that has it. ``repeated``: an earlier call with this run was
        not answered, and may have created it, or be about to.
        """
        for _ in range(_ADMISSIONS):
            try:
                return await self._database.in_write(
                    admit, tenant, run, key, otids, repeated=repeated
                )
            except ReattachError as error:
                if not lost_a_race(error):
                    raise
                lost = error
        raise lost

    async def known(self, tenant: TenantId, key: RequestKey) -> Run | None:
        """The run that the key made. Raises OtidConflictError for another payload."""
        return await self._database.in_read(known_run, tenant, key)

    async def get(self, tenant: TenantId, run_id: RunId) -> Run:
        run = await self._first(_BY_ID, tenant=tenant, run_id=run_id)
        if run is None:
            raise lookup.not_found(_runs, run_id)
        return run

    async def target(self, tenant: TenantId, run_id: RunId) -> Target:
        """What a reader needs of the run that ``get`` gives, at a fraction of the cost."""
        target = await self._find_target(_TARGET_BY_ID, tenant=tenant, run_id=run_id)
        if target is None:
            raise lookup.not_found(_runs, run_id)
        return target

    async def target_by_otid(self, tenant: TenantId, otid: str) -> Target | None:
        """Likewise of ``newest_by_otid``."""
        return await self._find_target(_TARGET_BY_OTID, tenant=tenant, otid=otid)

    async def active_target(self, tenant: TenantId, thread: Thread) -> Target | None:
        """Likewise of ``active``."""
        return await self._find_target(_ACTIVE_TARGET, tenant=tenant, thread_key=thread.key)

    async def newest_by_otid(self, tenant: TenantId, otid: str) -> Run | None:
        """The run that was created last of those that have a message with the OTID."""
        return await self._first(_BY_OTID, tenant=tenant, otid=otid)

    async def active(self, tenant: TenantId, thread: Thread) -> Run | None:
        """The run of the thread that has not ended."""
        return await self._first(_ACTIVE, tenant=tenant, thread_key=thread.key)

    async def list(
        self,
        tenant: TenantId,
        page: Page,
        *,
        agent_ids: Collection[AgentId] = (),
        statuses: Collection[RunStatus] = (),
        background: bool | None = None,
        stop_reason: StopReason | None = None,
        conversation_id: ConversationId | Literal["default"] | None = None,
        active_only: bool = False,
    ) -> builtins.list[Run]:
        """Runs as they were created. A filter that is empty or None is no filter.

        ``"default"`` is every run without a named conversation.
        """
        runs = schema.runs
        rows = lookup.owned(runs, tenant)
        if agent_ids:
            rows = rows.where(runs.c.agent_id.in_(agent_ids))
        if statuses:
            rows = rows.where(runs.c.status.in_(statuses))
        if background is not None:
            rows = rows.where(runs.c.background.is_(background))
        if stop_reason is not None:
            rows = rows.where(runs.c.stop_reason == stop_reason)
        if conversation_id == "default":
            rows = rows.where(runs.c.conversation_id.is_(None))
        elif conversation_id is not None:
            rows = rows.where(runs.c.conversation_id == conversation_id)
        if active_only:
            rows = rows.where(schema.ACTIVE)
        order = SortOrder(runs, runs.c.created_at, page.ascending)
        async with self._database.read() as connection:
            return [run_of(row) for row in await page_of(connection, rows, tenant, page, order)]

    async def mark_running(self, run_id: RunId, token: int, *, notes_begun: bool = False) -> bool:
        """Let a created run be running; False, and no change, unless its token is this one.

        True again for one that is running, and False for one that has ended. ``notes_begun``:
        none of its tools has begun to run, and each will be noted before it does.
        """
        begun = {"begun_calls": ()} if notes_begun else {}
        return await self._mark(run_id, token, status=RunStatus.RUNNING, **begun)

    async def note_begun(self, run_id: RunId, token: int, call_ids: Sequence[str]) -> bool:
        """Note all calls whose tools have begun, or begin when this has returned True.

        False, and no change, unless the run is active and its token is this one: whoever took it
        over runs no tools, and has it known which have begun.
        """
        return await self._mark(run_id, token, begun_calls=tuple(call_ids))

    async def _mark(self, run_id: RunId, token: int, **values: Any) -> bool:
        return await self._database.in_write(_marked, run_id, token, values)

    async def request_cancel(
        self, tenant: TenantId, run_ids: Sequence[RunId]
    ) -> builtins.list[Run]:
        """Ask the active ones among the runs to end, and return all of them, as asked for.

        Idempotent; the time of the first request stays. Each call notifies all processes
        (``Records.notifications``). Raises NotFoundError, changing nothing, if a run is unknown.
        """
        runs = schema.runs
        async with self._database.write() as connection:
            for run_id in run_ids:
                await connection.run_sync(lookup.require, runs, tenant, run_id)
            await connection.execute(
                update(runs)
                .where(runs.c.id.in_(run_ids), schema.ACTIVE, runs.c.cancel_requested_at.is_(None))
                .values(cancel_requested_at=self._clock.now())
            )
            found = [
                run_of(await connection.run_sync(lookup.require, runs, tenant, run_id))
                for run_id in run_ids
            ]
            await connection.run_sync(
                notify, *(CancelRequested(r.id) for r in found if r.status.is_active)
            )
            return found

    async def settle(self, run_id: RunId, settlement: Settlement) -> bool:
        """Write how an active run ended, in one transaction; True if this call did it.

        False, and no change, if the run has ended already or is not there. Sets the run's end,
        appends the messages to its thread and gives them its id, adds the steps, notes the end on
        the agent and the conversation, and notifies all processes (``Records.notifications``).
        Repeating it is safe.
        """
        return await self._database.in_write(settle, run_id, settlement)

    async def distrust_active(self) -> int:
        """Assume the worst of active runs after a power cut, and return how many there are.

        The last commits of a SQLite file may be lost: a run that is ``created`` may have been
        running, and any of its tools may have begun.
        """
        values = {"status": RunStatus.RUNNING, "begun_calls": None}
        async with self._database.write() as connection:
            active = update(schema.runs).where(schema.ACTIVE).values(values)
            return (await connection.execute(active)).rowcount

    async def orphans(self, limit: int, *, after: RunId | None = None) -> builtins.list[Run]:
        """Active runs of all tenants whose owner is not registered (any more), the oldest first.

        At most ``limit``, which were created after the run ``after``. An owner whose lease ran out
        is registered until it is buried: ``Owners.bury``. A damaged row is given without the values
        that cannot be read.
        """
        return await self._database.in_read(orphans.orphans, after, limit)

    async def take_over(
        self, run_id: RunId, token: int, owner: str, *, step: int = 1
    ) -> Run | None:
        """Make ``owner`` hold an active run whose token is still ``token``.

        The new token is higher by ``step``. None, and no change, if the run has ended or somebody
        else was first.
        """
        return await self._database.in_write(orphans.take_over, run_id, token, owner, step)

    async def held(self, run_id: RunId, owner: str) -> Run | None:
        """The run if it is active and ``owner`` holds it."""
        return await self._database.in_read(orphans.held_run, run_id, owner)

    async def standings(self, run_ids: Sequence[str]) -> dict[str, Standing]:
        """Whether each of the runs is active, and who owns it; of those that have a record."""
        return await self._database.in_read(auditing.standings, run_ids)

    async def ended(self, run_id: RunId) -> Run | None:
        """The run if it has ended, as far as its row can be read."""
        return await self._database.in_read(auditing.ended_run, run_id)

    async def abandon_logs(self, run_ids: Sequence[str], at: datetime) -> builtins.list[RunId]:
        """Let logs without a record be deleted from ``at`` on; return those that are new to this.

        ``expired`` names them then.
        """
        return await self._database.in_write(auditing.abandon_logs, run_ids, at)

    async def disclaim(self, run_id: RunId, owner: str) -> bool:
        """Let an active run of ``owner`` be an orphan, though the owner lives.

        False, and no change, if the run has ended or is another's. The token stays: whoever takes
        the run over gets a higher one.
        """
        runs = schema.runs
        async with self._database.write() as connection:
            disclaimed = await connection.execute(
                update(runs)
                .where(runs.c.id == run_id, runs.c.owner == owner, schema.ACTIVE)
                .values(owner=NOBODY)
            )
        return disclaimed.rowcount > 0

    async def steps(self, tenant: TenantId, run_id: RunId, page: Page) -> builtins.list[Step]:
        """The steps of a settled run as they were made."""
        table = schema.steps
        rows = lookup.owned(table, tenant).where(table.c.run_id == run_id)
        order = SortOrder(table, table.c.created_at, page.ascending)
        async with self._database.read() as connection:
            await connection.run_sync(lookup.require, schema.runs, tenant, run_id)
            found = await page_of(connection, rows, tenant, page, order)
        return [Step(**{name: row[name] for name in _STEP_FIELDS}) for row in found]

    async def latest_end(self) -> datetime | None:
        """Return when the last of the runs ended whose logs are kept, of all tenants."""
        latest = select(func.max(schema.runs.c.completed_at)).where(schema.LOG_KEPT)
        async with self._database.read() as connection:
            found: datetime | None = await connection.scalar(latest)
        return found

    async def expired(
        self, before: datetime, limit: int, *, after: datetime | None = None
    ) -> builtins.list[RunId]:
        """Runs whose logs are to be deleted, at most ``limit``, of all tenants.

        First those that were deleted themselves, then those that ended before the one time, or
        after the other.
        """
        runs = schema.runs
        abandoned = schema.abandoned_logs
        ended = runs.c.completed_at < before
        if after is not None:
            ended |= runs.c.completed_at > after
        exists_still = exists().where(runs.c.id == abandoned.c.run_id)
        async with self._database.read() as connection:
            found = list(
                await connection.scalars(
                    select(abandoned.c.run_id)
                    .where(abandoned.c.abandoned_at <= self._clock.now(), ~exists_still)
                    .order_by(abandoned.c.abandoned_at)
                    .limit(limit)
                )
            )
            kept = await connection.scalars(
                select(runs.c.id)
                .where(schema.LOG_KEPT, ended)
                .order_by(runs.c.completed_at)
                .limit(limit - len(found))
            )
            return [RunId(run_id) for run_id in (*found, *kept)]

    async def mark_log_deleted(self, run_ids: Sequence[RunId], at: datetime) -> None:
        """Remember that the logs are gone, since ``at``. The time of the first call stays."""
        runs = schema.runs
        abandoned = schema.abandoned_logs
        async with self._database.write() as connection:
            await connection.execute(
                update(runs)
                .where(runs.c.id.in_(run_ids), schema.LOG_KEPT)
                .values(log_deleted_at=at)
            )
            await connection.execute(delete(abandoned).where(abandoned.c.run_id.in_(run_ids)))

    async def delete(self, tenant: TenantId, run_id: RunId) -> None:
        """Forget an ended run, its steps, key and OTIDs; its messages stay where they are.

        ``expired`` names it until its log is gone. Raises ConflictError while it is active.
        """
        runs = schema.runs
        async with self._database.write() as connection:
            await connection.run_sync(lookup.hold, runs, tenant, run_id)
            row = await connection.run_sync(lookup.require, runs, tenant, run_id)
            if row["status"].is_active:
                raise ConflictError(
                    f"Run {run_id} is active. Cancel it and wait for its end, then delete it.",
                    run_id=run_id,
                )
            if row["log_deleted_at"] is None:
                await connection.execute(
                    insert(schema.abandoned_logs).values(
                        run_id=run_id, abandoned_at=self._clock.now()
                    )
                )
            await connection.execute(delete(runs).where(runs.c.id == run_id))

    async def _first(self, rows: Select[Any], **values: object) -> Run | None:
        for row in await self._database.rows(rows, **values):
            return run_of(row)
        return None

    async def _find_target(self, query: PreparedQuery, **values: object) -> Target | None:
        for row in await self._database.run_prepared(query, **values):
            return Target(*row)
        return None


def _marked(connection: Connection, run_id: RunId, token: int, values: Mapping[str, Any]) -> bool:
    marked = connection.execute(_MARK, {"run_id": run_id, "held_token": token, **values})
    return marked.rowcount > 0
