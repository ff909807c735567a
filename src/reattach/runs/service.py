"""The operations on runs: send, find, follow, cancel, drain."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta

import structlog

from reattach.agent.engine_factory import EngineFactory
from reattach.domain.clock import Clock
from reattach.domain.errors import (
    InvalidArgumentError,
    LogLostError,
    LogNotFoundError,
    NoActiveRunError,
    NoActiveRunsToCancelError,
    NotFoundError,
    StoreUnavailableError,
    TrimmedError,
)
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import RunId, Seq, TenantId, is_run_id
from reattach.domain.limits import (
    CANCEL_WAIT_SECONDS,
    LEASE_SECONDS,
    OPEN_LOOK_SECONDS,
    OPEN_WAIT_SECONDS,
    REPLAY_SLICE_EVENTS,
    SETTLE_WAIT_SECONDS,
    SWEEP_BATCH_RUNS,
    TOOL_SECONDS,
)
from reattach.engine.catalog import Catalog
from reattach.log.base import Log, Slice
from reattach.meters.meters import Meters
from reattach.records.base import (
    Actor,
    Beat,
    Run,
    Thread,
)
from reattach.records.records import Records
from reattach.records.runs.notifications import (
    CancelRequested,
    Notification,
    NotificationsMissed,
    ReportsWanted,
    RunReleased,
    RunSettled,
    TimelineKept,
    TimelineWanted,
)
from reattach.runs.attempts.policy import CONTINUES, ContinuePolicy
from reattach.runs.drivers import Drivers
from reattach.runs.endings import CANCELLED
from reattach.runs.following.follow import Following, Target, Watch, follow, remainder
from reattach.runs.following.readers import Readers
from reattach.runs.history.history import History
from reattach.runs.idempotency import otid_alias, unknown_otid
from reattach.runs.observing.observer import Observers, RunObserver
from reattach.runs.open_runs import OpenRuns
from reattach.runs.ownership.audit import Audit
from reattach.runs.ownership.lease import Ownership
from reattach.runs.ownership.recovery import Recovery
from reattach.runs.ownership.retention import Retention
from reattach.runs.ownership.settlements import Settlements
from reattach.runs.ownership.settling import SettlementWriter
from reattach.runs.sends import Send, Sends
from reattach.runs.snapshot.snapshots import Snapshots
from reattach.tools.base import Toolbox

__all__ = ["RunService", "Send"]

logger = structlog.get_logger(__name__)


class RunService:
    """All runs of one process.

    Call ``start`` and let it return before anything else. ``recover`` continues or ends the runs
    that dead processes left unfinished (P7, P19).
    """

    on_report_wanted: Callable[[], None] = staticmethod(lambda: None)
    """Called when another process wants the report of this one."""

    _has_recovered = False

    def __init__(
        self,
        log: Log,
        records: Records,
        catalog: Catalog,
        clock: Clock,
        *,
        default_model: str | None = None,
        toolbox: Toolbox | None = None,
        tool_seconds: float = TOOL_SECONDS,
        retention: timedelta = timedelta(hours=24),
        boot: str | None = None,
        ping_interval_seconds: float = 15.0,
        lease_seconds: float = LEASE_SECONDS,
        callback_due: Callable[[], None] = lambda: None,
        policy: ContinuePolicy = CONTINUES,
        observers: Iterable[RunObserver] = (),
        meters: Meters | None = None,
    ) -> None:
        self.log = log
        self.meters = meters or Meters()
        self.watch = Watch(ping_interval_seconds, clock.now)
        self.readers = Readers(self.watch, clock)
        self.open_runs = OpenRuns()
        self.released = asyncio.Event()
        """Set when another process gave a run up, so that ``recover`` finds it."""
        self.ownership = Ownership(records, clock, lease_seconds)
        self._records = records
        self._clock = clock
        self.engine_factory = EngineFactory(
            catalog, toolbox or Toolbox(), clock, default_model, tool_seconds
        )
        self._retention = Retention(records, clock, retention, boot)
        self._settlements = Settlements(records, clock)
        self.history = History(records, self.readers, self.open_runs, self.ownership, clock)
        self.snapshots = Snapshots(records, self.watch, self.follow, self.is_settled_in_time)
        observer = Observers(observers)
        settling = SettlementWriter(records, clock, self._retention, self.engine_factory, observer)
        settling.callback_due = callback_due
        drivers = Drivers(
            log, records, clock, self.engine_factory, self.open_runs, policy, settling.write,
            observer, self.meters,
        )  # fmt: skip
        self._recovery = Recovery(drivers, self.ownership)
        self._sends = Sends(drivers, self.ownership, self._recovery.give_up)
        self.audit = Audit(
            log,
            records,
            clock,
            ownership=self.ownership,
            recovery=self._recovery,
            drivers=self.open_runs.drivers,
            retention=self._retention,
        )

    async def start(self, *, recovers: bool = True) -> None:
        """Register this process, and take over the runs of dead owners if it ``recovers``.

        Raises:
            StoreUnavailableError: A store does not answer.
        """
        await self.ownership.register()
        if recovers:
            await self.recover()

    @property
    def draining(self) -> bool:
        """Whether new runs are refused."""
        return self.open_runs.draining

    async def aclose(self) -> None:
        """End every open run and return when each has its terminal group."""
        await self.drain(0)

    async def release_lease(self) -> None:
        """Give the lease back.

        Call it after ``aclose``; other processes end the runs that are left.
        """
        with suppress(StoreUnavailableError):  # It runs out by itself.
            await self.ownership.release()

    # Sending.

    async def send(self, send: Send, *, admit: Callable[[int], None] = lambda _: None) -> Run:
        """Create the run that ``send`` asks for, or return the run that it created before (P9).

        The run does not depend on the caller (P6); follow it, or wait with ``wait_until_settled``.
        ``admit`` is called with the tenant's number of open runs right before a new run starts, and
        refuses it by raising QuotaError. A repeated send is never refused for that.

        Raises:
            UnavailableError: The server is draining, or a store does not answer.
            ConversationBusyError: The conversation has an active run (P10).
            OtidConflictError: An OTID was used for a different message.
            NotFoundError: The model is unknown.
            PendingApprovalError: The conversation waits for an approval.
            AnswerRefusedError: The send answers an approval request that is not open.
        """
        return await self._sends.send(send, admit)

    # Finding and following.

    async def by_id(self, tenant: TenantId, run_id: str) -> Run:
        """Return the run.

        Raises:
            InvalidArgumentError: The id is malformed.
            NotFoundError: The tenant has no such run.
        """
        return await self._records.runs.get(tenant, parse_run_id(run_id))

    async def target(self, tenant: TenantId, run_id: str) -> Target:
        """Return the members of the run that a reader needs: a cheaper ``by_id``."""
        return await self._records.runs.target(tenant, parse_run_id(run_id))

    async def by_otid(self, tenant: TenantId, otid: str) -> Run:
        """Return the newest run that was created with the OTID, in whatever state it is.

        Raises:
            NotFoundError: There is none.
        """
        run = await self._records.runs.newest_by_otid(tenant, otid)
        if run is None:
            raise unknown_otid(otid)
        return run

    async def target_by_otid(self, tenant: TenantId, otid: str) -> Target:
        """Return the target of ``by_otid``.

        For an open background run, a log that supports aliases answers without the records.
        """
        finds = self.log.capabilities.finds_aliases
        run_id = await self.log.find_open(otid_alias(tenant, otid)) if finds else None
        if run_id is not None:
            return Target(RunId(run_id), tenant, RunStatus.RUNNING, background=True)
        target = await self._records.runs.target_by_otid(tenant, otid)
        if target is None:
            raise unknown_otid(otid)
        return target

    async def active(self, tenant: TenantId, thread: Thread) -> Target:
        """Return the active run of the thread.

        Raises:
            NoActiveRunError: There is none.
        """
        target = await self._records.runs.active_target(tenant, thread)
        if target is None:
            raise NoActiveRunError
        return target

    def remainder(self, target: Target, cursor: int, *, max_events: int) -> Slice | None:
        """Return everything after ``cursor`` if the run has ended and it fits into one write.

        None is always a valid result; then use ``follow``.
        """
        if target.status.is_active:
            return None
        return remainder(self.log, target.run_id, Seq(cursor), max_events=max_events)

    async def follow(
        self,
        target: Target,
        cursor: int,
        *,
        max_events: int = REPLAY_SLICE_EVENTS,
        waits: bool = True,
        prefetches: bool = True,
    ) -> Following:
        """Follow a run from ``cursor``; see ``runs.follow.follow``.

        If the log of an ended run has lost its end, it is closed first. With ``waits``, a log that
        another process is about to open is waited for.

        Raises:
            ExpiredError: The log was deleted after its retention (P14), or lost (P5).
            StoreUnavailableError: The log could not be read, or does not exist yet.
        """
        driver = self.open_runs.drivers.get(target.run_id)
        if driver is not None:
            await driver.opened.wait()
        give_up_at = self._clock.monotonic_seconds() + (OPEN_WAIT_SECONDS if waits else 0.0)
        ended = not target.status.is_active
        while True:
            # Before the look: a recovery that ends meanwhile may have opened the log.
            had_recovered = self._has_recovered
            try:
                return await follow(
                    self.log,
                    target.run_id,
                    Seq(cursor),
                    max_events=max_events,
                    ended=ended,
                    prefetches=prefetches,
                )
            except LogLostError:
                await self.audit.end_lost_log(target.run_id)
                continue
            except TrimmedError as trimmed:
                raise await self.audit.explain_trimmed(target, trimmed) from None
            except LogNotFoundError:
                run = await self._records.runs.get(target.tenant, target.run_id)
            if not run.status.is_active:
                if ended:
                    raise self._retention.expired_error(run)
                ended = True  # The whole log may have been written since the look.
                continue
            # Another process may be about to open the log, or to end the run because it is lost.
            is_late = self._clock.monotonic_seconds() >= give_up_at
            if (had_recovered and not self.ownership.shared) or is_late:
                raise StoreUnavailableError(
                    f"The events of {run.id} cannot be read at present. Try again in a moment."
                )
            await self._clock.sleep(OPEN_LOOK_SECONDS)

    async def wait_until_settled(self, run: Run, *, timeout_seconds: float | None = None) -> Run:
        """Wait until the run has ended and its record says so, then return it.

        After ``timeout_seconds``, at the end of a drain, or if this process has to wait for a store
        to end the run, return it as it is, possibly still active.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                driver = self.open_runs.drivers.get(run.id)
                if driver is not None:
                    await driver.done.wait()
                is_settled = driver is not None and driver.settled
                pending = self._recovery.pending.get(run.id)
                if not is_settled and (pending is None or not pending.has_failed):
                    return await self._settlements.wait(run.tenant, run.id)
        except TimeoutError:
            logger.warning("run not settled in time", run_id=run.id)
        return await self._records.runs.get(run.tenant, run.id)

    def is_known_as_settled(self, target: Target) -> bool:
        """Whether the run is settled, as far as that is known here. False may mean that it is."""
        return not target.status.is_active or self.open_runs.has_settled(target.run_id)

    async def is_settled_in_time(self, target: Target) -> bool:
        """Wait for the settlement of a run whose log is closed, and return whether it came in time.

        That is SETTLE_WAIT_SECONDS. All waiters share one query of a run of another process.
        """
        if self.is_known_as_settled(target):
            return True
        try:
            async with asyncio.timeout(SETTLE_WAIT_SECONDS):
                while driver := self.open_runs.drivers.get(target.run_id):
                    await driver.done.wait()
                    if driver.settled:
                        return True
                while pending := self._recovery.pending.get(target.run_id):
                    await pending.done.wait()
                with suppress(NotFoundError):  # It has ended and was deleted.
                    run = await self._settlements.wait(target.tenant, target.run_id)
                    return not run.status.is_active
        except TimeoutError:
            return False
        return True

    # Cancelling.

    async def cancel(self, runs: Sequence[Run], *, by: Actor | None = None) -> dict[str, str]:
        """Cancel the active ones of ``runs``; idempotent (P6). ``by`` is for the audit log.

        Return the resulting status of each: ``cancelled``; ``completed`` or ``failed`` if the run
        had already ended; ``cancelling`` if ending it takes longer than CANCEL_WAIT_SECONDS. Calls
        of a completed run that still wait for an approval are cancelled; the run stays completed.
        """
        ended = await asyncio.gather(*(self._cancel(run, by) for run in runs))
        return {run.id: "cancelling" if run.status.is_active else run.status.value for run in ended}

    async def cancel_thread(
        self, tenant: TenantId, thread: Thread, *, by: Actor | None = None
    ) -> dict[str, str]:
        """Cancel the active run of the thread, or the calls there that wait for an approval.

        Return the same as ``cancel``.

        Raises:
            NoActiveRunsToCancelError: There is neither.
        """
        run = await self._records.runs.active(tenant, thread)
        if run is not None:
            return await self.cancel([run], by=by)
        now = self._clock.now()
        pending = await self._records.messages.cancel_pending(tenant, thread, now)
        if pending is None:
            raise NoActiveRunsToCancelError(
                f"No active runs to cancel for conversation {thread.conversation_id or 'default'}"
            )
        asked_by = pending.request.run_id
        return {asked_by: RunStatus.COMPLETED.value} if asked_by else {}

    async def _cancel(self, run: Run, by: Actor | None) -> Run:
        if run.stop_reason is StopReason.REQUIRES_APPROVAL:
            now = self._clock.now()
            with suppress(NotFoundError):  # Its conversation was deleted.
                await self._records.messages.cancel_pending(
                    run.tenant, run.thread, now, run_id=run.id
                )
        if not run.status.is_active:
            return run
        (run,) = await self._records.runs.request_cancel(run.tenant, [run.id], by=by)
        if not run.status.is_active:
            return run
        if self.open_runs.end(run.id, CANCELLED) or not await self._is_orphan(run):
            return await self.wait_until_settled(run, timeout_seconds=CANCEL_WAIT_SECONDS)
        with suppress(StoreUnavailableError):  # The request is recorded; recovery repeats it.
            await self._recovery.end(run, CANCELLED)
        if self.open_runs.end(run.id, CANCELLED):  # It was being continued.
            return await self.wait_until_settled(run, timeout_seconds=CANCEL_WAIT_SECONDS)
        return await self._records.runs.get(run.tenant, run.id)

    async def _is_orphan(self, run: Run) -> bool:
        return run.id in self._recovery.pending or await self.ownership.is_dead(run.owner)

    # Other processes.

    async def apply_beat(self, owner: str, beat: Beat) -> None:
        """Apply the result of a beat of ``owner``, which is this process.

        Raises:
            StoreUnavailableError: A store does not answer.
        """
        if not beat.alive:
            for driver in self.open_runs.drivers.values():
                if driver.run.owner == owner:
                    driver.disown()
            await self.ownership.replace_owner(owner)
            return
        for run_id in beat.cancelled:
            self.open_runs.end(run_id, CANCELLED)
        await self.audit.compare_drivers(owner, beat.held)

    def handle_notification(self, notification: Notification) -> None:
        """Handle a notification of another process.

        The next heartbeat, or polling, replaces a lost one.
        """
        match notification:
            case CancelRequested(run_id):
                self.open_runs.end(run_id, CANCELLED)
            case RunSettled(run_id):
                self._settlements.notify(run_id)
            case RunReleased():
                self.released.set()
            case ReportsWanted():
                self.on_report_wanted()
            case TimelineWanted() | TimelineKept():
                self.history.timelines.handle(notification)
            case NotificationsMissed():
                self._settlements.notify_all()
                self.released.set()
                self.on_report_wanted()

    # Recovery, retention and draining.

    @property
    def has_pending_recoveries(self) -> bool:
        """Whether some run that nobody drives still has to be ended."""
        return bool(self._recovery.pending)

    async def recover(self) -> None:
        """Continue or end every run whose owner is gone, and every run that this process gave up.

        A process that drains leaves them to others, or to the next start.

        Raises:
            StoreUnavailableError: A store did not answer for some run; call it again later.
        """
        if not self.draining:
            await self._recovery.recover()
            self._has_recovered = True

    async def sweep(self) -> int:
        """Delete the logs that are past their retention, and return how many (P14)."""
        expired = await self._retention.find_expired(SWEEP_BATCH_RUNS)
        await self.delete_logs(expired)
        await self._records.runs.mark_log_deleted(expired, self._clock.now())
        return len(expired)

    async def delete_logs(self, run_ids: Sequence[str]) -> None:
        """Delete the logs of ended runs."""
        for run_id in run_ids:
            await self.log.delete(run_id)

    async def drain(self, seconds: float) -> None:
        """Refuse new runs, let the open ones finish for ``seconds``, then end them (P15).

        Everyone who reads a run that goes on elsewhere, or waits for its end, is then released, to
        reconnect there. Return when every run of this process has ended, or could not be ended
        within some seconds more.
        """
        await self.open_runs.drain(seconds)
        self.watch.release()
        self._settlements.release()


def parse_run_id(run_id: str) -> RunId:
    """Raises InvalidArgumentError for text that is no id of a run."""
    if not is_run_id(run_id):
        raise InvalidArgumentError(
            f"Invalid run ID format: {run_id[:100]}. Expected format: 'run-<uuid4>'"
        )
    return RunId(run_id)
