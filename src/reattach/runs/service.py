"""What can be done with runs: send, find, follow, cancel, drain. Where the parts meet."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import structlog

from reattach.agent.engine_factory import EngineFactory
from reattach.domain.clock import Clock
from reattach.domain.errors import (
    InvalidArgumentError,
    LogLostError,
    LogNotFoundError,
    NoActiveRunsToCancelError,
    NotFoundError,
    StoreUnavailableError,
)
from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import RunId, TenantId, is_run_id
from reattach.domain.limits import (
    CANCEL_WAIT_SECONDS,
    LEASE_SECONDS,
    OPEN_LOOK_SECONDS,
    OPEN_WAIT_SECONDS,
    SETTLE_WAIT_SECONDS,
    SWEEP_BATCH_RUNS,
    TOOL_SECONDS,
)
from reattach.engine.catalog import Catalog
from reattach.log.base import Log, Slice
from reattach.records.base import (
    Beat,
    Run,
    Settlement,
    Thread,
)
from reattach.records.records import Records
from reattach.records.runs.notifications import (
    CancelRequested,
    Notification,
    NotificationsMissed,
    RunSettled,
)
from reattach.runs.endings import CANCELLED
from reattach.runs.follow import Following, Target, Watch, follow, remainder
from reattach.runs.idempotency import otid_alias
from reattach.runs.open_runs import OpenRuns
from reattach.runs.ownership.audit import Audit
from reattach.runs.ownership.lease import Ownership
from reattach.runs.ownership.recovery import Recovery
from reattach.runs.ownership.retention import Retention
from reattach.runs.ownership.settlements import Settlements
from reattach.runs.retry import until_available
from reattach.runs.sends import Send, Sends
from reattach.tools.base import Toolbox

__all__ = ["RunService", "Send"]

logger = structlog.get_logger(__name__)


class RunService:
    """All runs of one process.

    ``start`` must have returned before anything else is asked of it: it gives every run that a
    dead process left behind its end (P7).
    """

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
        ping_interval_seconds: float = 15.0,
        lease_seconds: float = LEASE_SECONDS,
        callback_due: Callable[[], None] = lambda: None,
    ) -> None:
        self.log = log
        self.watch = Watch(ping_interval_seconds)
        self.open_runs = OpenRuns()
        self.ownership = Ownership(records, clock, lease_seconds)
        self._records = records
        self._clock = clock
        self.engine_factory = EngineFactory(
            catalog, toolbox or Toolbox(), clock, default_model, tool_seconds
        )
        self._retention = Retention(records, clock, retention)
        self._callback_due = callback_due
        self._drivers = self.open_runs.drivers
        self._settlements = Settlements(records, clock)
        self._recovery = Recovery(log, records, clock, self.ownership, self._settle)
        self._sends = Sends(
            log,
            records,
            clock,
            engine_factory=self.engine_factory,
            open_runs=self.open_runs,
            ownership=self.ownership,
            settle=self._settle,
            give_up=self._recovery.give_up,
        )
        self.audit = Audit(
            log,
            records,
            clock,
            ownership=self.ownership,
            recovery=self._recovery,
            drivers=self._drivers,
            retention=retention,
        )

    async def start(self) -> None:
        """Recover what a dead process left. Raises StoreUnavailableError."""
        await self.ownership.register()
        await self.recover()

    @property
    def draining(self) -> bool:
        """Whether no new runs are taken."""
        return self.open_runs.draining

    async def aclose(self) -> None:
        """End every run that is left, and return when each has its terminal group."""
        await self.drain(0)

    async def release_lease(self) -> None:
        """Give the lease back, after ``aclose``; what could not be ended is left to others."""
        with suppress(StoreUnavailableError):  # It runs out by itself.
            await self.ownership.release()

    # Sending.

    async def send(self, send: Send, *, admit: Callable[[int], None] = lambda _: None) -> Run:
        """Make the run that ``send`` asks for, or find the one that it made before (P9).

        The run goes on by itself (P6); follow it, or wait for it with ``settled``. ``admit`` is
        called with the number of the tenant's open runs right before a run begins, and refuses it
        by raising QuotaError; a send that was made before gets its run all the same.
        Raises UnavailableError for a new run while draining, and while a store does not answer;
        ConversationBusyError (P10), OtidConflictError, NotFoundError for an unknown model,
        PendingApprovalError and AnswerRefusedError.
        """
        return await self._sends.send(send, admit)

    async def _settle(self, run: Run, settlement: Settlement) -> None:
        """Write how the run ended, trying again while the store does not take it."""
        self._retention.watch()
        await until_available(self._clock, lambda: self._records.runs.settle(run.id, settlement))
        if run.callback_url is not None:
            self._callback_due()

    # Finding and following.

    async def by_id(self, tenant: TenantId, run_id: str) -> Run:
        """The run. Raises InvalidArgumentError for a malformed id, NotFoundError."""
        return await self._records.runs.get(tenant, _checked(run_id))

    async def target(self, tenant: TenantId, run_id: str) -> Target:
        """What a reader needs of the run that ``by_id`` gives, at a fraction of the cost."""
        return await self._records.runs.target(tenant, _checked(run_id))

    async def by_otid(self, tenant: TenantId, otid: str) -> Run:
        """The newest run that the OTID made, whatever became of it. Raises NotFoundError."""
        run = await self._records.runs.newest_by_otid(tenant, otid)
        if run is None:
            raise _otid_unknown(otid)
        return run

    async def target_by_otid(self, tenant: TenantId, otid: str) -> Target:
        """As ``by_otid``, but a log that knows the OTID of a background run saves the records."""
        finds = self.log.capabilities.finds_aliases
        run_id = await self.log.find(otid_alias(tenant, otid)) if finds else None
        if run_id is not None:
            with suppress(LogNotFoundError):
                head = await self.log.head(run_id)
                if not head.closed:
                    return Target(RunId(run_id), tenant, RunStatus.RUNNING, background=True)
        target = await self._records.runs.target_by_otid(tenant, otid)
        if target is None:
            raise _otid_unknown(otid)
        return target

    async def active(self, tenant: TenantId, thread: Thread) -> Target:
        """The run under way in the thread. Raises InvalidArgumentError if there is none."""
        target = await self._records.runs.active_target(tenant, thread)
        if target is None:
            raise InvalidArgumentError("No active runs found for this conversation.")
        return target

    def remainder(self, target: Target, cursor: int, *, max_events: int) -> Slice | None:
        """All that follows ``cursor``, if the run has ended and it is one write of a replay.

        None is always a legal answer: ``follow`` tells then.
        """
        if target.status.is_active:
            return None
        return remainder(self.log, target.run_id, cursor, max_events=max_events)

    async def follow(
        self, target: Target, cursor: int, *, max_events: int, waits: bool = True
    ) -> Following:
        """Follow a run from ``cursor``, as ``runs.follow.follow`` says.

        A log that lost its end gets one first. Raises ExpiredError if the log is gone, telling
        since when (P14), or that it was lost (P5), and StoreUnavailableError if it could not be
        made yet; at once unless it ``waits`` for that.
        """
        driver = self._drivers.get(target.run_id)
        if driver is not None:
            await driver.opened.wait()
        give_up_at = self._clock.monotonic_seconds() + (OPEN_WAIT_SECONDS if waits else 0.0)
        ended = not target.status.is_active
        while True:
            try:
                return await follow(
                    self.log, target.run_id, cursor, max_events=max_events, ended=ended
                )
            except LogLostError:
                await self.audit.end_lost_log(target.run_id)
                continue
            except LogNotFoundError:
                run = await self._records.runs.get(target.tenant, target.run_id)
            if not run.status.is_active:
                raise self._retention.error(run)
            # Another process may be about to open it, or to end it because it was lost.
            is_late = self._clock.monotonic_seconds() >= give_up_at
            if not self.ownership.shared or is_late:
                raise StoreUnavailableError(
                    f"The events of {run.id} can not be read at present. Try again in a moment."
                )
            await self._clock.sleep(OPEN_LOOK_SECONDS)

    async def wait_until_settled(self, run: Run, *, timeout_seconds: float | None = None) -> Run:
        """Wait until the run has ended and its record says so, and return it as it is then.

        Returns the run as it is, perhaps still active, after ``timeout_seconds``, and as soon as
        this process had to give it up.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                driver = self._drivers.get(run.id)
                if driver is not None:
                    await driver.done.wait()
                is_settled = driver is not None and driver.settled
                if not is_settled and run.id not in self._recovery.endless:
                    return await self._settlements.ended(run.tenant, run.id)
        except TimeoutError:
            logger.warning("run not settled in time", run_id=run.id)
        return await self._records.runs.get(run.tenant, run.id)

    async def wait_until_recorded(self, target: Target) -> bool:
        """Wait until the record of a run whose log is closed says how it ended.

        False if it does not after SETTLE_WAIT_SECONDS. The store is asked only about a run that
        another process works on, and once for all who wait.
        """
        if not target.status.is_active:
            return True
        try:
            async with asyncio.timeout(SETTLE_WAIT_SECONDS):
                while driver := self._drivers.get(target.run_id):
                    await driver.done.wait()
                    if driver.settled:
                        return True
                while endless := self._recovery.endless.get(target.run_id):
                    await endless.done.wait()
                with suppress(NotFoundError):  # It ended, and was deleted since.
                    await self._settlements.ended(target.tenant, target.run_id)
        except TimeoutError:
            return False
        return True

    # Cancelling.

    async def cancel(self, runs: Sequence[Run]) -> dict[str, str]:
        """Cancel the runs that are active; idempotent (P6).

        Returns the state of each afterwards: ``cancelled``, ``completed`` or ``failed`` if it
        had ended by itself, ``cancelling`` if its end takes longer than CANCEL_WAIT_SECONDS.
        Calls of the run that still wait for an approval are cancelled; the run stays completed.
        """
        ended = await asyncio.gather(*(self._cancel(run) for run in runs))
        return {run.id: "cancelling" if run.status.is_active else run.status.value for run in ended}

    async def cancel_thread(self, tenant: TenantId, thread: Thread) -> dict[str, str]:
        """Cancel what is active in the thread, or the calls that wait there for an approval.

        Returns what ``cancel`` returns. Raises NoActiveRunsToCancelError if there is neither.
        """
        run = await self._records.runs.active(tenant, thread)
        if run is not None:
            return await self.cancel([run])
        now = self._clock.now()
        pending = await self._records.messages.cancel_pending(tenant, thread, now)
        if pending is None:
            raise NoActiveRunsToCancelError(
                f"No active runs to cancel for conversation {thread.conversation_id or 'default'}"
            )
        asked_by = pending.request.run_id
        return {asked_by: RunStatus.COMPLETED.value} if asked_by else {}

    async def _cancel(self, run: Run) -> Run:
        if run.stop_reason is StopReason.REQUIRES_APPROVAL:
            now = self._clock.now()
            with suppress(NotFoundError):  # Its conversation was deleted.
                await self._records.messages.cancel_pending(
                    run.tenant, run.thread, now, run_id=run.id
                )
        if not run.status.is_active:
            return run
        (run,) = await self._records.runs.request_cancel(run.tenant, [run.id])
        if not run.status.is_active:
            return run
        if self._end_here(run.id) or not await self._is_orphan(run):
            return await self.wait_until_settled(run, timeout_seconds=CANCEL_WAIT_SECONDS)
        with suppress(StoreUnavailableError):  # What was asked for is noted, and made up for.
            await self._recovery.end(run, CANCELLED)
        return await self._records.runs.get(run.tenant, run.id)

    def _end_here(self, run_id: str) -> bool:
        """Cancel the run if it is worked on here."""
        return self.open_runs.end(run_id, CANCELLED)

    async def _is_orphan(self, run: Run) -> bool:
        return run.id in self._recovery.endless or await self.ownership.is_gone(run.owner)

    # What other processes say, and what is said to them.

    async def beat(self) -> None:
        """Renew the lease, and obey what the records say since. Raises StoreUnavailableError."""
        owner = self.ownership.owner
        await self.apply_beat(owner, await self.ownership.beat())

    async def apply_beat(self, owner: str, beat: Beat) -> None:
        """Do what the records said to ``owner``, this process, with a beat.

        Raises StoreUnavailableError.
        """
        if not beat.alive:
            for driver in self._drivers.values():
                if driver.run.owner == owner:
                    driver.disown()
            await self.ownership.renew(owner)
            return
        for run_id in beat.cancelled:
            self._end_here(run_id)
        await self.audit.compare_drivers(owner, beat.held)

    def handle_notification(self, notification: Notification) -> None:
        """Act on a notification. The next beat, and regular reads, make up for a missed one."""
        match notification:
            case CancelRequested(run_id):
                self._end_here(run_id)
            case RunSettled(run_id):
                self._settlements.hear(run_id)
            case NotificationsMissed():
                self._settlements.hear_all()

    # Ends that nobody asked for.

    @property
    def has_pending_recoveries(self) -> bool:
        """Whether there are runs that could not be given their end yet."""
        return bool(self._recovery.endless)

    async def recover(self) -> None:
        """See ``Recovery.recover``."""
        await self._recovery.recover()

    async def sweep(self) -> int:
        """Delete the logs past their retention, and return how many (P14)."""
        expired = await self._retention.expired(SWEEP_BATCH_RUNS)
        await self.delete_logs(expired)
        await self._records.runs.mark_log_deleted(expired, self._clock.now())
        return len(expired)

    async def delete_logs(self, run_ids: Sequence[str]) -> None:
        """Forget the logs of runs that have ended."""
        for run_id in run_ids:
            await self.log.delete(run_id)

    async def drain(self, seconds: float) -> None:
        """Refuse new runs, let the open ones finish for ``seconds``, then end them (P15).

        Then the readers of runs that other processes work on are sent there. Returns when no run
        is left without its end, or could not be ended within seconds more.
        """
        await self.open_runs.drain(seconds)
        self.watch.release()


def _checked(run_id: str) -> RunId:
    if not is_run_id(run_id):
        raise InvalidArgumentError(
            f"Invalid run ID format: {run_id[:100]}. Expected format: 'run-<uuid4>'"
        )
    return RunId(run_id)


def _otid_unknown(otid: str) -> NotFoundError:
    return NotFoundError(
        f"No run found for otid={otid[:200]}. The run may have expired or never existed."
    )
