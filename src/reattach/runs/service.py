"""What can be done with runs: send, find, follow, cancel, drain. Where the parts meet."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import msgspec
import structlog

from reattach.clock import Clock
from reattach.engine.base import Turn
from reattach.engine.catalog import Catalog
from reattach.errors import (
    InvalidArgumentError,
    LogNotFoundError,
    NoActiveRunsToCancelError,
    NotFoundError,
    StoreUnavailableError,
    UnavailableError,
)
from reattach.events import RunStatus, StopReason
from reattach.ids import RunId, TenantId, is_run_id, new_run_id, new_uuid
from reattach.limits import (
    APPEND_RETRY_SECONDS,
    CANCEL_WAIT_SECONDS,
    ENGINE_STOP_SECONDS,
    LEASE_SECONDS,
    OPEN_LOOK_SECONDS,
    OPEN_WAIT_SECONDS,
    SETTLE_WAIT_SECONDS,
    SWEEP_BATCH_RUNS,
    TOOL_SECONDS,
)
from reattach.log.base import Log, Slice
from reattach.messages import Message
from reattach.records.base import (
    Agent,
    Conversation,
    RequestKey,
    Run,
    RunCreated,
    Settlement,
    Thread,
)
from reattach.records.records import Records
from reattach.records.wakes import CancelRequested, RunSettled, Wake, WakesMissed
from reattach.runs.answering import Answering
from reattach.runs.endings import CANCELLED, DRAINED, STORE_FAILED
from reattach.runs.follow import Following, Target, Watch, follow, rest
from reattach.runs.idempotency import otid_alias, request_key
from reattach.runs.ownership import Ownership
from reattach.runs.patience import patiently
from reattach.runs.recovery import Recovery
from reattach.runs.retention import Retention
from reattach.runs.settlements import Settlements
from reattach.runs.turns import Overrides, make_turn
from reattach.runs.worker import Options, Worker
from reattach.tools.base import Toolbox

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Send:
    """A request for a turn, checked and understood."""

    tenant: TenantId
    agent: Agent
    conversation: Conversation | None
    """None: the agent's default thread."""
    messages: tuple[Message, ...]
    """At least one; with the OTIDs that the client gave them."""
    background: bool
    run_type: str
    request_config: dict[str, object]
    options: Options
    overrides: Overrides
    callback_url: str | None = None
    """Whom to tell of the run's end."""

    @property
    def thread(self) -> Thread:
        return Thread(self.agent.id, self.conversation.id if self.conversation else None)


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
        self.draining = False
        self.ownership = Ownership(records, clock, lease_seconds)
        self._records = records
        self._clock = clock
        self.answering = Answering(
            catalog, toolbox or Toolbox(), clock, default_model, tool_seconds
        )
        self._retention = Retention(records, clock, retention)
        self._callback_due = callback_due
        self._workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._settlements = Settlements(records, clock)
        self._recovery = Recovery(log, records, clock, self.ownership, self._settle)

    async def start(self) -> None:
        """Recover what a dead process left. Raises StoreUnavailableError."""
        await self.ownership.begin()
        await self.recover()

    async def aclose(self) -> None:
        """End every run that is left, and return when each has its terminal group."""
        await self.drain(0)

    async def leave(self) -> None:
        """Give the lease back, after ``aclose``; what could not be ended is left to others."""
        with suppress(StoreUnavailableError):  # It runs out by itself.
            await self.ownership.leave()

    # Sending.

    async def send(self, send: Send) -> Run:
        """Make the run that ``send`` asks for, or find the one that it made before (P9).

        The run goes on by itself (P6); follow it, or wait for it with ``settled``.
        Raises UnavailableError while draining or while a store does not answer,
        ConversationBusyError (P10), OtidConflictError, NotFoundError for an unknown model,
        PendingApprovalError and AnswerRefusedError.
        """
        if self.draining:
            raise UnavailableError(
                "The server is shutting down. Send again; another process will take it.",
                retry_after_seconds=2,
            )
        model = self.answering.model(send.agent, send.conversation, send.overrides.model)
        engine = self.answering.engine(model, send.tenant, send.agent, send.conversation)
        run = self._new_run(send, model)
        aliases = [otid_alias(run.tenant, one.otid) for one in run.input if one.otid]
        # Asked for nothing but its answer: without it, the run that is made could not begin.
        await self.log.find(aliases[0])

        async def turn() -> Turn:
            context = await self._records.messages.context(send.tenant, send.thread)
            return make_turn(worker.run, send.agent, send.conversation, context, send.overrides)

        worker = Worker(
            run,
            send.options,
            engine=engine,
            log=self.log,
            clock=self._clock,
            aliases=aliases if run.background else (),
            make_turn=turn,
            mark_running=partial(
                self._records.runs.mark_running,
                run.id,
                run.token,
                notes_begun=engine.announces_tools,
            ),
            note_begun=partial(self._records.runs.note_begun, run.id, run.token),
            settle=self._settle,
        )
        key = request_key(send.messages, send.thread)
        admitted: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        # Before the record is there: who finds that must find the worker, and wait for its log.
        self._workers[run.id] = worker
        # A task of its own: a sender that is cancelled leaves no run that nobody works on.
        task = asyncio.create_task(self._work(worker, key, admitted), name=f"run {run.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(admitted)

    def _new_run(self, send: Send, model: str) -> Run:
        sent = tuple(
            message if message.otid else msgspec.structs.replace(message, otid=new_uuid())
            for message in send.messages
        )
        return Run(
            id=new_run_id(),
            tenant=send.tenant,
            thread=send.thread,
            status=RunStatus.CREATED,
            background=send.background,
            created_at=self._clock.now(),
            model=model,
            run_type=send.run_type,
            request_config=send.request_config,
            input=sent,
            owner=self.ownership.owner,
            token=1,
            callback_url=send.callback_url,
        )

    async def _work(
        self, worker: Worker, key: RequestKey | None, admitted: asyncio.Future[Run]
    ) -> None:
        """Create the worker's run and let it work, unless the key made another one before.

        ``admitted`` is told the run, or why there is none.
        """
        run = worker.run
        otids = [message.otid for message in run.input if message.otid]
        try:
            outcome = await self._records.runs.create(run.tenant, run, key, otids)
        except Exception as error:  # noqa: BLE001  the sender raises it
            # An answer that was lost leaves it open whether the run was created.
            worker.gave_up = isinstance(error, StoreUnavailableError)
            admitted.set_exception(error)
        else:
            admitted.set_result(outcome.run)
            if isinstance(outcome, RunCreated):
                worker.run = outcome.run  # with what its answers mean
                await worker.work()
        finally:
            worker.opened.set()
            worker.done.set()
            self._workers.pop(run.id, None)
            if worker.gave_up:
                self._recovery.give_up(run, STORE_FAILED)

    async def _settle(self, run: Run, settlement: Settlement) -> None:
        """Write how the run ended, trying again while the store does not take it."""
        self._retention.watch()
        await patiently(self._clock, lambda: self._records.runs.settle(run.id, settlement))
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

    def rest(self, target: Target, cursor: int, *, max_events: int) -> Slice | None:
        """All that follows ``cursor``, if the run has ended and it is one write of a replay.

        None is always a legal answer: ``follow`` tells then.
        """
        if target.status.is_active:
            return None
        return rest(self.log, target.run_id, cursor, max_events=max_events)

    async def follow(self, target: Target, cursor: int, *, max_events: int) -> Following:
        """Follow a run from ``cursor``, as ``runs.follow.follow`` says.

        Raises ExpiredError if the log is gone, telling since when (P14), and
        StoreUnavailableError if it could not be made yet.
        """
        worker = self._workers.get(target.run_id)
        if worker is not None:
            await worker.opened.wait()
        give_up_at = self._clock.monotonic_seconds() + OPEN_WAIT_SECONDS
        while True:
            try:
                return await follow(self.log, target.run_id, cursor, max_events=max_events)
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

    def open_runs(self, tenant: TenantId) -> int:
        """How many runs of the tenant this process works on."""
        return sum(worker.run.tenant == tenant for worker in self._workers.values())

    async def settled(self, run: Run, *, timeout_seconds: float | None = None) -> Run:
        """Wait until the run has ended and its record says so, and return it as it is then.

        Returns the run as it is, perhaps still active, after ``timeout_seconds``, and as soon as
        this process had to give it up.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                worker = self._workers.get(run.id)
                if worker is not None:
                    await worker.done.wait()
                is_settled = worker is not None and worker.settled
                if not is_settled and run.id not in self._recovery.endless:
                    return await self._settlements.ended(run.tenant, run.id)
        except TimeoutError:
            logger.warning("run not settled in time", run_id=run.id)
        return await self._records.runs.get(run.tenant, run.id)

    async def ending_told(self, target: Target) -> bool:
        """Wait until the record of a run whose log is closed says how it ended.

        False if it does not after SETTLE_WAIT_SECONDS. The store is asked only about a run that
        another process works on, and once for all who wait.
        """
        if not target.status.is_active:
            return True
        try:
            async with asyncio.timeout(SETTLE_WAIT_SECONDS):
                while worker := self._workers.get(target.run_id):
                    await worker.done.wait()
                    if worker.settled:
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
            return await self.settled(run, timeout_seconds=CANCEL_WAIT_SECONDS)
        with suppress(StoreUnavailableError):  # What was asked for is noted, and made up for.
            await self._recovery.end(run, CANCELLED)
        return await self._records.runs.get(run.tenant, run.id)

    def _end_here(self, run_id: str) -> bool:
        """Cancel the run if it is worked on here."""
        worker = self._workers.get(run_id)
        if worker is not None:
            worker.end(CANCELLED)
        return worker is not None

    async def _is_orphan(self, run: Run) -> bool:
        return run.id in self._recovery.endless or await self.ownership.is_gone(run.owner)

    # What other processes say, and what is said to them.

    async def beat(self) -> None:
        """Renew the lease, and obey what the records say since. Raises StoreUnavailableError."""
        beat = await self.ownership.beat()
        if not beat.alive:
            for worker in self._workers.values():
                worker.disown()
        for run_id in beat.cancelled:
            self._end_here(run_id)

    def hear(self, wake: Wake) -> None:
        """Obey a wake. One that is missed is made up for by the next beat, and by looks."""
        match wake:
            case CancelRequested(run_id):
                self._end_here(run_id)
            case RunSettled(run_id):
                self._settlements.hear(run_id)
            case WakesMissed():
                self._settlements.hear_all()

    # Ends that nobody asked for.

    @property
    def has_endless(self) -> bool:
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
        self.draining = True
        if self._tasks and seconds > 0:
            logger.info("draining", open_runs=len(self._tasks), seconds=seconds)
            await asyncio.wait(self._tasks, timeout=seconds)
        for worker in list(self._workers.values()):
            worker.end(DRAINED)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ENGINE_STOP_SECONDS + APPEND_RETRY_SECONDS)
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
