"""Runs: how they are created, owned and ended."""

import builtins
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeVar

import msgspec
from sqlalchemy import (
    Connection,
    Select,
    Update,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from reattach.domain.clock import Clock
from reattach.domain.errors import ConflictError
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, RunId, TenantId, Token
from reattach.records import lookup
from reattach.records.audit_log import Action, note
from reattach.records.base import (
    Actor,
    Attempt,
    LogSummary,
    Page,
    RequestKey,
    Run,
    RunKnown,
    RunNotes,
    Settlement,
    Step,
    Target,
    Thread,
)
from reattach.records.contexts.contexts import Contexts
from reattach.records.database import schema
from reattach.records.database.database import Database, repeat_lost_races
from reattach.records.database.prepared import PreparedStatement, Steps, take_steps
from reattach.records.paging import SortOrder, page_of
from reattach.records.repository import Repository
from reattach.records.runs import audit as auditing
from reattach.records.runs import cut_offs, hidden_events, orphans, retries, timelines
from reattach.records.runs.admission import admit, known_run, run_of
from reattach.records.runs.audit import Standing
from reattach.records.runs.created import AdmittedContext, RunCreated
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.records.runs.lists.pages import RunPages, run_filters
from reattach.records.runs.marks import mark_active, marking, release
from reattach.records.runs.notifications import CancelRequested, notify
from reattach.records.runs.openings import Opening
from reattach.records.runs.orphans import TakenOver
from reattach.records.runs.settlement import settle
from reattach.records.runs.targets.queries import (
    ACTIVE_RUN,
    ACTIVE_TARGET,
    CONVERSATION,
    RUN_BY_ID,
    RUN_BY_OTID,
    TARGET_BY_ID,
    TARGET_BY_OTID,
)
from reattach.records.tokens.tokens import revoke_of_run

_T = TypeVar("_T")

NOBODY: Final = ""
"""The owner of a disclaimed run: no process registers under this id."""

SHORT_SETTLEMENT: Final = 16
"""The messages and steps that are written in the event loop, in half a millisecond."""

_runs = schema.runs

_PAGES: Final = RunPages(*_runs.c)

_STEP_FIELDS: Final = tuple(field.name for field in fields(Step))


class Runs(Repository):
    """The runs of each tenant. Methods without a tenant are for the server itself."""

    def __init__(self, database: Database, clock: Clock, contexts: Contexts) -> None:
        super().__init__(database, clock)
        self._contexts = contexts

    async def create(
        self,
        tenant: TenantId,
        run: Run,
        key: RequestKey | None,
        otids: Sequence[str],
        *,
        digest: retries.RequestDigest | None = None,
        opening: Opening | None = None,
        repeated: bool = False,
    ) -> RunCreated | RunKnown:
        """Create the run with its key and OTIDs, and its conversation, unless the key is known.

        Among any number of calls with one key, in any process, exactly one creates a run; the
        others return that run. A key without OTIDs is ignored. An answer that was given before
        returns the run that received it, and a request the run that its ``digest`` says it repeats.
        ``repeated`` says that an earlier call with this run got no reply: it may have created the
        run, or may still do so. A new run comes with the context of its thread.

        Raises, in this order:
            OtidConflictError: The key is known with another payload.
            ConversationKeyTakenError: The conversation to be opened exists by now.
            NotFoundError: The agent or the conversation does not exist.
            ConversationBusyError: A run of the thread is active.
            PendingApprovalError: The thread waits for an answer, and the input is another one.
            AnswerRefusedError: The thread does not wait for this answer.
        """
        context = AdmittedContext(self._contexts, run.thread)
        admission = partial(
            admit, digest=digest, opening=opening, repeated=repeated, pending=context.pending
        )

        def create(connection: Connection) -> Steps[RunCreated | RunKnown]:
            return context.admit(
                connection, lambda connection: admission(connection, tenant, run, key, otids)
            )

        is_short = opening is None  # An opening may copy a long thread.
        return context.added_to(await self._write_run(create, is_short=is_short))

    async def find_by_key(self, tenant: TenantId, key: RequestKey) -> Run | None:
        """Return the run that the key created. Raises OtidConflictError for another payload."""
        return await self._database.in_read(known_run, tenant, key)

    async def find_by_digest(self, tenant: TenantId, name: str, since: datetime) -> Run | None:
        """Return the newest run since then whose request had the digest of this name."""
        row = await self._database.in_read(retries.newest, tenant, name, since)
        return None if row is None else run_of(row)

    async def get(self, tenant: TenantId, run_id: RunId) -> Run:
        run = await self._first(RUN_BY_ID, tenant=tenant, run_id=run_id)
        if run is None:
            raise lookup.not_found(_runs, run_id)
        return run

    async def target(self, tenant: TenantId, run_id: RunId) -> Target:
        """Return the part of the run that a reader needs, at a fraction of the cost of ``get``."""
        target = await self._find_target(TARGET_BY_ID, tenant=tenant, run_id=run_id)
        if target is None:
            raise lookup.not_found(_runs, run_id)
        return target

    async def conversation_of(self, tenant: TenantId, run_id: str) -> str | None:
        """Return the run's conversation; None if it has none, or if there is no such run."""
        rows = await self._database.run_prepared(CONVERSATION, tenant=tenant, run_id=run_id)
        return rows[0][0] if rows else None

    async def target_by_otid(self, tenant: TenantId, otid: str) -> Target | None:
        """Return the same part of the run of ``newest_by_otid``."""
        return await self._find_target(TARGET_BY_OTID, tenant=tenant, otid=otid)

    async def active_target(self, tenant: TenantId, thread: Thread) -> Target | None:
        """Return the same part of the run of ``active``."""
        return await self._find_target(ACTIVE_TARGET, tenant=tenant, thread_key=thread.key)

    async def newest_by_otid(self, tenant: TenantId, otid: str) -> Run | None:
        """Return the newest run that has a message with the OTID."""
        return await self._first(RUN_BY_OTID, tenant=tenant, otid=otid)

    async def active(self, tenant: TenantId, thread: Thread) -> Run | None:
        """Return the run of the thread that has not ended."""
        return await self._first(ACTIVE_RUN, tenant=tenant, thread_key=thread.key)

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
        """List runs by their creation. A filter that is empty or None does not filter.

        The conversation ``"default"`` stands for all runs without a named conversation.
        """
        filters = run_filters(
            agent_ids=agent_ids,
            statuses=statuses,
            background=background,
            stop_reason=stop_reason,
            conversation_id=conversation_id,
            active_only=active_only,
        )
        found = await self._database.in_read(_PAGES.read, tenant, page, filters)
        names = schema.runs.c.keys()
        return [run_of(dict(zip(names, row, strict=True))) for row in found]

    async def mark_running(self, run_id: RunId, token: Token, *, notes_begun: bool = False) -> bool:
        """Set the status of an active run to running; False if its token is another one.

        Idempotent; False for a run that has ended. ``notes_begun`` says that none of its tool calls
        has begun, and that ``note_begun`` will record each before it begins.
        """
        begun = {"begun_calls": ()} if notes_begun else {}
        return await self._mark(run_id, token, status=RunStatus.RUNNING, **begun)

    async def note_begun(
        self, run_id: RunId, token: Token, call_ids: Sequence[str], notes: RunNotes | None = None
    ) -> bool:
        """Record all tool calls that have begun, or that begin once this has returned True.

        Returns False and changes nothing if the run has ended or its token is another one. A new
        owner reports the recorded ones as possibly done, or runs those again that may be repeated.
        ``notes``, if given, replace those of the run.
        """
        noted = {} if notes is None else {"notes": notes}
        return await self._mark(run_id, token, begun_calls=tuple(call_ids), **noted)

    async def note(
        self,
        run_id: RunId,
        token: Token,
        notes: RunNotes,
        *,
        attempts: Sequence[Attempt] | None = None,
    ) -> bool:
        """Replace the notes of an active run, and its attempts if any are given.

        Returns False and changes nothing if the run has ended or its token is another one.
        """
        tried = {} if attempts is None else {"attempts": tuple(attempts)}
        values = {"notes": notes, **tried}
        return await self._database.in_grouped_write(mark_active, run_id, token, values)

    async def keep_hidden(self, run_id: RunId, token: Token, events: Sequence[HiddenEvent]) -> bool:
        """Add events that the run's log does not get; they are kept until the run is settled.

        Returns False and changes nothing if the run has ended or its token is another one.
        """

        def write(connection: Connection) -> bool:
            is_owned = mark_active(connection, run_id, token, {"token": token})
            if is_owned:
                hidden_events.keep(connection, run_id, events)
            return is_owned

        return await self._database.in_write(write)

    async def hand_over(
        self,
        run_id: RunId,
        token: Token,
        notes: RunNotes,
        call_ids: Sequence[str] | None,
        log: LogSummary | None = None,
    ) -> bool:
        """Make an active run an orphan that another process, or the next start, may continue.

        The caller has stopped writing to the log. ``notes`` replace those of the run, and
        ``call_ids``, unless None, its tool calls that have begun. All processes are notified.
        Returns False and changes nothing if the run has ended or its token is another one.
        """
        values = {
            "owner": NOBODY,
            **({} if call_ids is None else {"begun_calls": tuple(call_ids)}),
            "notes": msgspec.structs.replace(notes, handed_over=True),
            "interrupted_at": self._clock.now(),
        }
        return await self._database.in_grouped_write(release, run_id, token, values, log)

    async def _mark(self, run_id: RunId, token: Token, **values: Any) -> bool:
        return await self._database.in_single_write(*marking(run_id, token, values)) > 0

    async def request_cancel(
        self, tenant: TenantId, run_ids: Sequence[RunId], *, by: Actor | None = None
    ) -> builtins.list[Run]:
        """Request the end of the active ones among the runs, and return all of them in order.

        Idempotent; the time of the first request stays. Each call notifies all processes
        (``Records.notifications``). Raises NotFoundError, changing nothing, if a run is unknown.
        """
        runs, now = schema.runs, self._clock.now()
        request = (
            update(runs)
            .where(runs.c.id.in_(run_ids), schema.ACTIVE, runs.c.cancel_requested_at.is_(None))
            .values(cancel_requested_at=now)
            .returning(runs.c.id)
        )

        def write(connection: Connection) -> builtins.list[Run]:
            for run_id in run_ids:
                lookup.require(connection, runs, tenant, run_id)
            for run_id in connection.scalars(request).all():
                note(connection, by, Action.RUN_CANCELLED, now, tenant=tenant, subject=run_id)
            found = [run_of(lookup.require(connection, runs, tenant, run_id)) for run_id in run_ids]
            notify(connection, *(CancelRequested(r.id) for r in found if r.status.is_active))
            return found

        return await self._database.in_write(write)

    async def settle(self, run_id: RunId, settlement: Settlement) -> bool:
        """Write the end of an active run in one transaction.

        Sets the run's end, appends its messages to the thread with the run's id, adds the steps,
        updates the last run of the agent and the conversation, and notifies all processes
        (``Records.notifications``). Returns False and changes nothing if the run has ended or does
        not exist, so repeating it is safe.
        """
        rows = len(settlement.messages) + len(settlement.steps)
        # A summary may take the place of its messages in the thread while they are being written.
        return await self._write_run(
            lambda connection: settle(connection, run_id, settlement),
            is_short=rows <= SHORT_SETTLEMENT,
        )

    async def _write_run(self, work: Callable[[Connection], Steps[_T]], *, is_short: bool) -> _T:
        """Make a transaction, in the event loop if it is short, and again if it loses a race."""

        def call(connection: Connection) -> _T:
            return take_steps(connection, work(connection))

        write = (
            partial(self._database.in_short_write, work)
            if is_short
            else partial(self._database.in_write, call)
        )
        return await repeat_lost_races(write)

    async def distrust_active(self) -> int:
        """Assume the worst of active runs after a power cut, and return their number.

        The last commits of a SQLite file may be lost, so a run that is ``created`` may have been
        running, and any of its tool calls may have begun. None can be continued.
        """
        values = {"status": RunStatus.RUNNING, "begun_calls": None, "turn_plan": None}
        return await self._database.in_write(
            _count_changed, update(schema.runs).where(schema.ACTIVE).values(values)
        )

    async def orphans(self, limit: int, *, after: RunId | None = None) -> builtins.list[Run]:
        """List active runs of all tenants whose owner is not registered, oldest first.

        At most ``limit`` that were created after the run ``after``. An owner whose lease expired
        stays registered until it is buried: ``Owners.bury``.
        """
        # Processes that share records ask all the time, and nearly always find none.
        is_frequent = after is None and self._database.backend == "postgresql"
        if is_frequent and not await self._database.run_prepared(orphans.ANY_ORPHAN):
            return []
        return await self._database.in_read(orphans.orphans, after, limit)

    async def take_over(
        self, claims: Sequence[tuple[RunId, Token]], owner: str, *, step: int = 1
    ) -> builtins.list[TakenOver]:
        """Make ``owner`` the owner of those runs that are active and still have the given token.

        Their new tokens are higher by ``step``. The others have ended, or another process was
        faster; of several, those that somebody else has locked are left out too.
        """
        return await self._database.in_write(orphans.take_over, claims, owner, step)

    async def find_owned(self, run_id: RunId, owner: str) -> TakenOver | None:
        """Return the run if it is active and ``owner`` owns it."""
        return await self._database.in_read(orphans.owned_run, run_id, owner)

    async def standings(self, run_ids: Sequence[str]) -> dict[str, Standing]:
        """Return status and owner of each run that has a record."""
        return await self._database.in_read(auditing.standings, run_ids)

    async def find_ended(self, run_id: RunId) -> Run | None:
        """Return the run if it has ended."""
        return await self._database.in_read(auditing.ended_run, run_id)

    async def abandon_logs(self, run_ids: Sequence[str], at: datetime) -> builtins.list[RunId]:
        """Schedule logs without a record for deletion at ``at``; return the newly scheduled ones.

        ``list_expired`` returns them from then on.
        """
        return await self._database.in_write(auditing.abandon_logs, run_ids, at)

    async def disclaim(self, run_id: RunId, owner: str) -> bool:
        """Make an active run of ``owner`` an orphan although the owner lives.

        Returns False and changes nothing if the run has ended or has another owner. The token
        stays; the next owner gets a higher one.
        """
        runs = schema.runs
        disclaimed = (
            update(runs)
            .where(runs.c.id == run_id, runs.c.owner == owner, schema.ACTIVE)
            .values(owner=NOBODY, interrupted_at=self._clock.now())
        )
        return await self._database.in_write(_count_changed, disclaimed) > 0

    async def steps(self, tenant: TenantId, run_id: RunId, page: Page) -> builtins.list[Step]:
        """List the steps of a settled run by their creation."""
        table = schema.steps
        rows = lookup.owned(table, tenant).where(table.c.run_id == run_id)
        order = SortOrder(table, table.c.created_at, page.ascending)

        def read(connection: Connection) -> builtins.list[Step]:
            lookup.require(connection, schema.runs, tenant, run_id)
            found = page_of(connection, rows, tenant, page, order)
            return [Step(**{name: row[name] for name in _STEP_FIELDS}) for row in found]

        return await self._database.in_read(read)

    async def latest_end(self) -> datetime | None:
        """Return the end of the newest ended run whose log still exists, over all tenants."""
        latest = select(func.max(schema.runs.c.completed_at).label("at")).where(schema.LOG_KEPT)
        found: datetime | None = (await self._database.rows(latest))[0]["at"]
        return found

    async def list_expired(
        self, before: datetime, limit: int, *, after: datetime | None = None
    ) -> builtins.list[RunId]:
        """List at most ``limit`` runs of all tenants whose logs have to be deleted.

        Deleted runs come first, then runs that ended before ``before`` or after ``after``.
        """
        runs = schema.runs
        abandoned = schema.abandoned_logs
        ended = runs.c.completed_at < before
        if after is not None:
            ended |= runs.c.completed_at > after
        exists_still = exists().where(runs.c.id == abandoned.c.run_id)
        deleted = (
            select(abandoned.c.run_id)
            .where(abandoned.c.abandoned_at <= self._clock.now(), ~exists_still)
            .order_by(abandoned.c.abandoned_at)
            .limit(limit)
        )
        kept = select(runs.c.id).where(schema.LOG_KEPT, ended).order_by(runs.c.completed_at)

        def read(connection: Connection) -> builtins.list[RunId]:
            first = connection.scalars(deleted).all()
            rest = connection.scalars(kept.limit(limit - len(first)))
            return [RunId(run_id) for run_id in (*first, *rest)]

        return await self._database.in_read(read)

    async def mark_log_deleted(self, run_ids: Sequence[RunId], at: datetime) -> None:
        """Record that the logs were deleted at ``at``. The time of the first call stays."""
        abandoned = schema.abandoned_logs

        def write(connection: Connection) -> None:
            kept = update(schema.runs).where(schema.runs.c.id.in_(run_ids), schema.LOG_KEPT)
            connection.execute(kept.values(log_deleted_at=at))
            retries.forget_requests(connection, run_ids)
            timelines.forget(connection, list(run_ids))
            cut_offs.forget(connection, list(run_ids))
            connection.execute(delete(abandoned).where(abandoned.c.run_id.in_(run_ids)))

        await self._database.in_write(write)

    async def delete(self, tenant: TenantId, run_id: RunId, *, by: Actor | None = None) -> None:
        """Delete an ended run with its steps, key and OTIDs; its messages stay in their threads.

        ``list_expired`` names it until its log is deleted. Raises ConflictError while it is active.
        """
        runs = schema.runs

        def write(connection: Connection) -> None:
            lookup.lock(connection, runs, tenant, run_id)
            row = lookup.require(connection, runs, tenant, run_id)
            if row["status"].is_active:
                raise ConflictError(
                    f"Run {run_id} is active. Cancel it, wait for its end, then delete it.",
                    run_id=run_id,
                )
            if row["log_deleted_at"] is None:
                abandoned = {"run_id": run_id, "abandoned_at": self._clock.now()}
                connection.execute(insert(schema.abandoned_logs), abandoned)
            now = self._clock.now()
            revoke_of_run(connection, run_id, now)
            note(connection, by, Action.RUN_DELETED, now, tenant=tenant, subject=run_id)
            connection.execute(delete(runs).where(runs.c.id == run_id))

        await self._database.in_write(write)

    async def _first(self, rows: Select[Any], **values: object) -> Run | None:
        for row in await self._database.rows(rows, **values):
            return run_of(row)
        return None

    async def _find_target(self, query: PreparedStatement, **values: object) -> Target | None:
        for row in await self._database.run_prepared(query, **values):
            return Target(*row)
        return None


def _count_changed(connection: Connection, statement: Update) -> int:
    return connection.execute(statement).rowcount
