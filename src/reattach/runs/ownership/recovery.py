"""Recovery: runs without a driver are taken over and ended from their logs."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from msgspec import structs

from reattach.domain.approvals import has_answer
from reattach.domain.backoff import Backoff
from reattach.domain.clock import Clock
from reattach.domain.errors import (
    FencedError,
    LogNotFoundError,
    StoreUnavailableError,
)
from reattach.domain.events import RunStatus, Usage
from reattach.domain.ids import RunId, Seq
from reattach.domain.limits import (
    LOST_LOG_FIRST_SEQ,
    RECOVERIES_AT_ONCE,
    SWEEP_BATCH_RUNS,
    TAKEOVER_BATCH_RUNS,
)
from reattach.domain.messages import ToolCallPart
from reattach.log.base import Log
from reattach.records.base import LogSummary, Run, Settlement
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.records.runs.orphans import TakenOver
from reattach.runs.drivers import Drivers
from reattach.runs.endings import (
    CANCELLED,
    DRAINED,
    LOG_LOST,
    OWNER_DIED,
    POWER_LOST,
    UNREADABLE,
    Ending,
)
from reattach.runs.ownership.continuing import Continuing, takeover_of
from reattach.runs.ownership.lease import Ownership
from reattach.runs.ownership.orphan_log import find_head, is_lost, read_log
from reattach.runs.ownership.suspects import Suspects
from reattach.runs.transcript import Transcript
from reattach.wire import letta

logger = structlog.get_logger(__name__)

LONGEST_TOKEN_STEP: Final = 2**20
"""Token steps double with each refusal; no log is further ahead of its record than their sum."""


_UNKNOWN_FAILURE_SECONDS: Final = (1.0, 300.0)
"""The first and the longest wait after a failure that no retry may mend, such as damage."""


@dataclass(slots=True)
class PendingRecovery:
    """An active run without a driver. ``done`` is set when the run has its end."""

    run: Run
    ending: Ending
    has_failed: bool = False
    """Whether the run was given up here, or could not be taken up at once."""
    taken: TakenOver | None = None
    """The run as it was taken over together with others, until ``recover`` comes to it."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    backoff: Backoff = field(default_factory=lambda: Backoff(*_UNKNOWN_FAILURE_SECONDS))
    again_at_seconds: float = -math.inf
    """When ``recover`` tries again after a failure that is not an outage."""

    def failed(self, error: Exception, clock: Clock) -> None:
        """Log the first failure with its traceback, and wait longer after each."""
        self.has_failed = True
        first = error if self.backoff.failures == 0 else None
        wait_seconds = self.backoff.next_seconds()
        self.again_at_seconds = clock.monotonic_seconds() + wait_seconds
        logger.error(
            "run not recovered",
            run_id=self.run.id,
            reason=type(error).__name__,
            again_in_seconds=wait_seconds,
            exc_info=first,
        )


class Recovery:
    """Continues or ends runs that this process gave up, and runs whose owner is gone (P7, P19)."""

    def __init__(self, drivers: Drivers, ownership: Ownership) -> None:
        self.pending: dict[str, PendingRecovery] = {}
        """Runs that are known to need an end, by id."""
        self._log = drivers.log
        self._records = drivers.records
        self._clock = drivers.clock
        self._ownership = ownership
        self._settle = drivers.settle
        self._observer = drivers.observer
        self._continuing = Continuing(drivers, self.give_up)
        self._suspects = Suspects(drivers, lambda run: self._take_up(self._pending(run)))
        self._is_suspect = drivers.policy.is_suspect

    def give_up(self, run: Run, ending: Ending) -> None:
        """Note that nobody drives the run any more; ``recover`` continues or ends it."""
        self.pending.setdefault(run.id, PendingRecovery(run, ending, has_failed=True))

    def _pending(self, orphan: Run) -> PendingRecovery:
        ending = DRAINED if orphan.notes.handed_over else OWNER_DIED
        return self.pending.setdefault(orphan.id, PendingRecovery(orphan, ending))

    async def recover(self) -> None:
        """Continue or end every run whose owner is gone, and every run that this process gave up.

        Orphans are read in batches until none is left. A run for which that fails does not delay
        the others. Suspects are only lined up; they are taken up one at a time.

        Raises:
            StoreUnavailableError: A store did not answer for some run; call it again later.
        """
        await self._ownership.bury_dead_owners()
        failures = await self._end_all(list(self.pending.values()))
        after: RunId | None = None
        while True:
            orphans = await self._records.runs.orphans(SWEEP_BATCH_RUNS, after=after)
            self._suspects.add(run for run in orphans if self._is_suspect(run))
            ready = [run for run in orphans if not self._is_suspect(run)]
            failures += await self._end_all([self._pending(run) for run in ready])
            if len(orphans) < SWEEP_BATCH_RUNS:
                break
            after = orphans[-1].id
        if failures:
            raise failures[0]

    async def _end_all(self, recovery: Sequence[PendingRecovery]) -> list[StoreUnavailableError]:
        """Continue or end the runs, a few at a time, and return the failures."""
        now = self._clock.monotonic_seconds()
        recovery = [one for one in recovery if one.again_at_seconds <= now]
        if not recovery:
            return []
        logger.info("recovering runs", runs=len(recovery))
        gate = asyncio.Semaphore(RECOVERIES_AT_ONCE)

        async def take_up(one: PendingRecovery) -> StoreUnavailableError | None:
            async with gate:
                return await self._take_up(one)

        failures: list[StoreUnavailableError | None] = []
        for start in range(0, len(recovery), TAKEOVER_BATCH_RUNS):
            batch = recovery[start : start + TAKEOVER_BATCH_RUNS]
            await self._take_over_together(batch)
            failures += await asyncio.gather(*(take_up(one) for one in batch))
        return [failure for failure in failures if failure is not None]

    async def _take_over_together(self, recovery: Sequence[PendingRecovery]) -> None:
        """Take the runs over in one transaction; those for which that fails follow one by one."""
        claimed = {
            one.run.id: one
            for one in recovery
            if one.taken is None and not self._continuing.is_left_to_others(one.run, one.ending)
        }
        claims = [(one.run.id, one.run.token) for one in claimed.values()]
        if len(claims) < 2:
            return
        try:
            taken = await self._records.runs.take_over(claims, self._ownership.owner)
        except Exception as error:  # noqa: BLE001  one damaged record must not delay the others
            logger.warning("runs not taken over together", runs=len(claims), reason=str(error))
            return
        for owned in taken:
            one = claimed[owned.run.id]
            one.run, one.taken = owned.run, owned

    async def _take_up(self, recovery: PendingRecovery) -> StoreUnavailableError | None:
        """Continue or end the run, and return the failure if a store did not answer."""
        try:
            await self.end(recovery.run, recovery.ending)
        except StoreUnavailableError as error:
            logger.warning("run not recovered", run_id=recovery.run.id, reason=error.detail)
            recovery.has_failed = True
            return error
        except Exception as error:  # noqa: BLE001  one run must not delay the others
            recovery.failed(error, self._clock)
        return None

    async def end(self, run: Run, ending: Ending) -> None:
        """End an ownerless active run. A requested cancellation takes precedence over ``ending``.

        Raises:
            StoreUnavailableError: A store does not answer. The run stays ``pending`` until it has
                its end.
        """
        # It stays pending until it has its end, even if this call is interrupted.
        recovery = self.pending.setdefault(run.id, PendingRecovery(run, ending))
        if ending is CANCELLED:
            recovery.ending = ending
        async with recovery.lock:
            if recovery.done.is_set():
                return
            taken, recovery.taken = recovery.taken, None
            await self._require_log(recovery.run)
            await self._end_taken_over(recovery, taken)
            self.pending.pop(run.id, None)
            recovery.done.set()

    async def _end_taken_over(self, recovery: PendingRecovery, taken: TakenOver | None) -> None:
        """Take the run over and continue or end it, unless it has ended or another process has it.

        The log may have a higher token than the record, if the records lost a commit. While the
        record names this process, the token is raised until the log accepts it.
        """
        step = 1
        if await self._leave_to_others(recovery.run, recovery.ending):
            return
        taken = taken or await self._take_over(recovery.run)
        while taken is not None:
            recovery.run = run = taken.run
            ending = CANCELLED if run.cancel_requested_at else recovery.ending
            if await self._leave_to_others(run, ending):
                return
            due = await self._due_calls(run)
            try:
                if ending is not CANCELLED and await self._continuing.start(taken, ending):
                    return
                settlement = await end_orphan(
                    run,
                    ending,
                    self._log,
                    self._clock,
                    self._settle,
                    due=due,
                    hidden=taken.hidden,
                )
                self._report_end(taken, settlement)
            except FencedError:
                if step > LONGEST_TOKEN_STEP:
                    raise
                taken = await self._claim(run, step)
                if taken is None:
                    logger.info("run taken over by another process", run_id=run.id)
                step *= 2
            else:
                return

    def _report_end(self, taken: TakenOver, settlement: Settlement) -> None:
        takeover = takeover_of(taken, self._clock.now(), settlement)
        self._observer.run_taken_over(takeover)

    async def _leave_to_others(self, run: Run, ending: Ending) -> bool:
        """Let another process have the run if this one drains; return whether it does."""
        if not self._continuing.is_left_to_others(run, ending):
            return False
        await self._records.runs.disclaim(run.id, self._ownership.owner)
        return True

    async def _require_log(self, run: Run) -> None:
        """Check that the log answers; otherwise disclaim the run and raise StoreUnavailableError.

        The log may answer other processes. They look for disclaimed runs, but not for runs of a
        live owner.
        """
        try:
            await self._log.head(run.id)
        except LogNotFoundError:
            pass
        except StoreUnavailableError:
            if self._ownership.shared:
                await self._records.runs.disclaim(run.id, self._ownership.owner)
            raise

    async def _due_calls(self, run: Run) -> list[ToolCallPart]:
        """Return the calls that the run had to run first, if it answered an approval request.

        If the conversation was deleted or cannot be read, there are none.
        """
        if run.status is RunStatus.CREATED or not has_answer(run.input):
            return []
        try:
            pending = await self._records.messages.pending_in(run.thread)
        except StoreUnavailableError:
            raise
        except Exception:
            logger.exception("conversation of a run cannot be read", run_id=run.id)
            return []
        return [] if pending is None else pending.due(run.input)

    async def _take_over(self, run: Run) -> TakenOver | None:
        """Take the run over; return None if it has ended or another process was first."""
        taken = await self._claim(run, 1)
        if taken is not None:
            return taken
        # An earlier attempt may have succeeded although its answer was lost.
        return await self._records.runs.find_owned(run.id, self._ownership.owner)

    async def _claim(self, run: Run, step: int) -> TakenOver | None:
        claims = [(run.id, run.token)]
        taken = await self._records.runs.take_over(claims, self._ownership.owner, step=step)
        return taken[0] if taken else None


async def end_orphan(
    run: Run,
    ending: Ending,
    log: Log,
    clock: Clock,
    settle: Callable[[Run, Settlement, Seq], Awaitable[None]],
    *,
    due: Sequence[ToolCallPart] = (),
    hidden: Sequence[HiddenEvent] = (),
) -> Settlement:
    """Close the log of ``run`` if it is open, and settle the run from it. Idempotent.

    ``run.token`` must be newer than the former owner's, so that the former owner can neither append
    nor start a tool. Calls of the run and ``due`` calls that had started get an error return that
    says that their outcome is unknown. A log that was lost, or may have lost its last events,
    continues beyond every possible reader; the conversation keeps what can be read. Unreadable
    events are left out of the record.

    Raises:
        FencedError: The log has a newer token: another process took the run over, or the records
            lost a commit.
        StoreUnavailableError: A store does not answer.
    """
    left = await find_head(run, log)
    transcript = Transcript()
    if left is not None and left.tail_uncertain:
        await read_log(run, log, left, transcript, hidden)
        ending = ending if ending is CANCELLED else POWER_LOST
        writer = await log.open(run.id, run.token, first_seq=LOST_LOG_FIRST_SEQ)
    elif is_lost(run, left):
        ending = ending if ending is CANCELLED else LOG_LOST
        writer = await log.open(run.id, run.token, first_seq=LOST_LOG_FIRST_SEQ)
    else:
        writer = await log.open(run.id, run.token)
    head = writer.head
    size_bytes = (await read_log(run, log, head, transcript, hidden)).size_bytes
    transcript.due = tuple(due)
    transcript.begun = run.begun_calls
    usage = Usage(step_count=len(transcript.steps_seen()))
    last_seq = head.last_seq
    if not head.closed:
        events = ending.terminal_group(usage)
        frames = letta.Encoder(run.id).frames(events, after_seq=writer.last_seq)
        await writer.append(writer.last_seq + 1, frames, close=True)
        last_seq = Seq(writer.last_seq + len(frames))
        size_bytes += sum(map(len, frames))
        if writer.meter is not None:
            writer.meter.count(len(frames))
    else:
        events = [] if transcript.stopped is not None else UNREADABLE.terminal_group(usage)
    for event in events:
        transcript.add(event)
    summary = LogSummary(last_seq + 1 - head.first_seq, size_bytes)
    settlement = await _settle_from(transcript, run, clock, settle, last_seq, log=summary)
    found = head.last_seq + 1 - head.first_seq
    logger.info("run recovered", run_id=run.id, was_closed=head.closed, events=found)
    return settlement


async def _settle_from(
    transcript: Transcript,
    run: Run,
    clock: Clock,
    settle: Callable[[Run, Settlement, Seq], Awaitable[None]],
    last_seq: Seq,
    *,
    log: LogSummary,
) -> Settlement:
    """Settle the run with its messages, or without them if they cannot be stored."""
    now = clock.now()
    try:
        settlement = transcript.settlement(run, transcript.steps_seen(), now)
        settlement = replace(settlement, log=log)
        await settle(run, settlement, last_seq)
    except (StoreUnavailableError, FencedError):
        raise
    except Exception:
        logger.exception("messages of a run cannot be stored", run_id=run.id)
        bare = Transcript()
        bare.stopped, bare.failed, bare.usage = (
            transcript.stopped,
            transcript.failed,
            transcript.usage,
        )
        settlement = replace(bare.settlement(run, [], now), log=log)
        await settle(structs.replace(run, input=()), settlement, last_seq)
    return settlement
