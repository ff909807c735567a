"""How runs end that nobody works on: from their logs, by whoever takes them over."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from reattach.domain.approvals import has_answer
from reattach.domain.clock import Clock
from reattach.domain.errors import (
    ExpiredError,
    FencedError,
    LogNotFoundError,
    StoreUnavailableError,
)
from reattach.domain.events import Event, RunStatus, Stopped, Usage
from reattach.domain.ids import RunId
from reattach.domain.limits import (
    LOST_LOG_FIRST_SEQ,
    RECOVERIES_AT_ONCE,
    REPLAY_SLICE_BYTES,
    SWEEP_BATCH_RUNS,
)
from reattach.domain.messages import ToolCallPart
from reattach.domain.store_errors import LogDamagedError
from reattach.log.base import Head, Log
from reattach.records.base import Run, Settlement
from reattach.records.records import Records
from reattach.runs.endings import (
    CANCELLED,
    LOG_LOST,
    OWNER_DIED,
    POWER_LOST,
    UNREADABLE,
    Ending,
)
from reattach.runs.ownership.lease import Ownership
from reattach.runs.transcript import Transcript
from reattach.wire import letta
from reattach.wire.sse import split_frames

logger = structlog.get_logger(__name__)

LONGEST_TOKEN_STEP: Final = 2**20
"""Steps double with each refusal: no log is as far ahead of its record as all of them together."""


@dataclass(slots=True)
class Endless:
    """An active run that nobody works on. ``done`` is set when it has its end."""

    run: Run
    ending: Ending
    done: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Recovery:
    """Ends the runs that this process had to give up, and those whose owner is gone (P7)."""

    def __init__(
        self,
        log: Log,
        records: Records,
        clock: Clock,
        ownership: Ownership,
        settle: Callable[[Run, Settlement], Awaitable[None]],
    ) -> None:
        self.endless: dict[str, Endless] = {}
        """What is known to need an end, by the run's id."""
        self._log = log
        self._records = records
        self._clock = clock
        self._ownership = ownership
        self._settle = settle

    def give_up(self, run: Run, ending: Ending) -> None:
        """Nobody works on the run any more; ``recover`` ends it when it can."""
        self.endless.setdefault(run.id, Endless(run, ending))

    async def recover(self) -> None:
        """End every run whose owner is gone, and those that this process had to give up.

        Orphans are read in batches until none is left, whatever their number. A run that cannot
        be ended holds back no other.

        Raises:
            StoreUnavailableError: A store did not answer for some run; the next call tries again.
        """
        await self._ownership.expire_owners()
        failures = await self._end_all(list(self.endless.values()))
        after: RunId | None = None
        while True:
            orphans = await self._records.runs.orphans(SWEEP_BATCH_RUNS, after=after)
            for run in orphans:
                self.give_up(run, OWNER_DIED)
            failures += await self._end_all([self.endless[run.id] for run in orphans])
            if len(orphans) < SWEEP_BATCH_RUNS:
                break
            after = orphans[-1].id
        if failures:
            raise failures[0]

    async def _end_all(self, endless: Sequence[Endless]) -> list[StoreUnavailableError]:
        """End the runs, some at a time, and return why those that remain could not be ended."""
        if not endless:
            return []
        logger.info("recovering runs", runs=len(endless))
        gate = asyncio.Semaphore(RECOVERIES_AT_ONCE)
        failures: list[StoreUnavailableError] = []

        async def end(one: Endless) -> None:
            async with gate:
                try:
                    await self.end(one.run, one.ending)
                except StoreUnavailableError as error:
                    logger.warning("run not recovered", run_id=one.run.id, reason=error.detail)
                    failures.append(error)
                except Exception:
                    logger.exception("run not recovered", run_id=one.run.id)

        await asyncio.gather(*(end(one) for one in endless))
        return failures

    async def end(self, run: Run, ending: Ending) -> None:
        """Give an active run without owner its end, which a cancel that was asked for decides.

        Raises StoreUnavailableError; then the run is among ``endless`` until it has its end.
        """
        # It stays here until it has its end, whatever interrupts this.
        endless = self.endless.setdefault(run.id, Endless(run, ending))
        async with endless.turn:
            if endless.done.is_set():
                return
            await self._require_log(endless.run)
            await self._end_owned(endless)
            self.endless.pop(run.id, None)
            endless.done.set()

    async def _end_owned(self, endless: Endless) -> None:
        """Take the run over and end it, unless it has ended or another process has it.

        The log may have a higher token than the record, if the records lost a commit. While the
        record says that the run is ours, the token is raised until the log accepts it.
        """
        step = 1
        owned = await self._own(endless.run)
        while owned is not None:
            endless.run = owned
            ending = CANCELLED if owned.cancel_requested_at else endless.ending
            due = await self._due(owned)
            try:
                await end_orphan(owned, ending, self._log, self._clock, self._settle, due=due)
            except FencedError:
                if step > LONGEST_TOKEN_STEP:
                    raise
                owner = self._ownership.owner
                taken = await self._records.runs.take_over(owned.id, owned.token, owner, step=step)
                if taken is None:
                    logger.info("run taken over by another process", run_id=owned.id)
                owned, step = taken, 2 * step
            else:
                return

    async def _require_log(self, run: Run) -> None:
        """Raise StoreUnavailableError if the log does not answer; then the run is anybody's.

        It may answer other processes, which look for such runs and not for those of an owner that
        lives.
        """
        try:
            await self._log.head(run.id)
        except LogNotFoundError:
            pass
        except StoreUnavailableError:
            if self._ownership.shared:
                await self._records.runs.disclaim(run.id, self._ownership.owner)
            raise

    async def _due(self, run: Run) -> list[ToolCallPart]:
        """The calls that the run had to run first, if it answered an approval request.

        The conversation may have been deleted since. If it cannot be read, no call is known.
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

    async def _own(self, run: Run) -> Run | None:
        """Take the run over; None if it has ended or another process was first."""
        owner = self._ownership.owner
        owned = await self._records.runs.take_over(run.id, run.token, owner)
        if owned is not None:
            return owned
        # It is ours all the same if the answer of an earlier try was lost.
        return await self._records.runs.held(run.id, owner)


async def end_orphan(
    run: Run,
    ending: Ending,
    log: Log,
    clock: Clock,
    settle: Callable[[Run, Settlement], Awaitable[None]],
    *,
    due: Sequence[ToolCallPart] = (),
) -> None:
    """Give the log of ``run`` its end, if it has none, and settle the run from it.

    ``run.token`` must be newer than that of the owner that is gone, so that the owner can not
    append any more, nor begin to run a tool. Of the calls that were ``due``, and of the run's own,
    those that had begun may have done their work: nobody knows, and the conversation is told so. A
    log that was lost, or may have lost its last events, ends where no reader has been; the
    conversation keeps what is left of it. Events that cannot be read are left out of the record.
    Repeating it is safe at every point.

    Raises:
        FencedError: The log has a newer token: another process took the run over, or the records
            lost a commit.
        StoreUnavailableError: A store does not answer.
    """
    left = await _head(run, log)
    transcript = Transcript()
    if left is not None and left.tail_uncertain:
        await _read(run, log, left, transcript)
        ending = ending if ending is CANCELLED else POWER_LOST
        head = await log.open(run.id, run.token, first_seq=LOST_LOG_FIRST_SEQ)
    elif _is_lost(run, left):
        ending = ending if ending is CANCELLED else LOG_LOST
        head = await log.open(run.id, run.token, first_seq=LOST_LOG_FIRST_SEQ)
    else:
        head = await log.open(run.id, run.token)
    await _read(run, log, head, transcript)
    transcript.due = tuple(due)
    transcript.begun = run.begun_calls
    if not head.closed:
        events = _end(ending, transcript)
        first_seq = head.last_seq + 1
        frames = [letta.encode(event, seq, run.id) for seq, event in enumerate(events, first_seq)]
        await log.append(run.id, run.token, first_seq, frames, close=True)
    else:
        events = [] if transcript.stopped is not None else _end(UNREADABLE, transcript)
    for event in events:
        transcript.add(event)
    await _settle_from(transcript, run, clock, settle)
    logger.info("run recovered", run_id=run.id, was_closed=head.closed, events=head.last_seq)


def _end(ending: Ending, transcript: Transcript) -> list[Event]:
    """The terminal group of a run that ends so."""
    events: list[Event] = [Stopped(ending.reason)]
    if ending.failure is not None:
        events.append(ending.failure)
    return [*events, Usage(step_count=len(transcript.steps_seen()))]


async def _settle_from(
    transcript: Transcript,
    run: Run,
    clock: Clock,
    settle: Callable[[Run, Settlement], Awaitable[None]],
) -> None:
    """Settle the run with its messages; without them if they cannot be stored."""
    now = clock.now()
    try:
        await settle(run, transcript.settlement(run, transcript.steps_seen(), now))
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
        await settle(replace(run, input=()), bare.settlement(run, [], now))


async def _head(run: Run, log: Log) -> Head | None:
    """The extent of the run's log; None if there is no log."""
    try:
        return await log.head(run.id)
    except LogNotFoundError:
        return None


def _is_lost(run: Run, head: Head | None) -> bool:
    """A run is marked as running once its log is open, so then there has to be one."""
    if run.status is RunStatus.CREATED:
        return False
    # So it is again for whoever repeats this.
    return head is None or head.first_seq == LOST_LOG_FIRST_SEQ


async def _read(run: Run, log: Log, head: Head, transcript: Transcript) -> None:
    """Add the events that the log has to the transcript, without those that cannot be read.

    A later version may have written events that this one does not know, and bytes may be damaged.
    """
    cursor = head.first_seq - 1
    unread = 0
    while cursor < head.last_seq:
        try:
            piece = await log.read(
                run.id, cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=head.last_seq
            )
        except (LogDamagedError, LogNotFoundError, ExpiredError) as error:
            logger.error("log of a run is damaged", run_id=run.id, reason=error.detail)  # noqa: TRY400
            return
        for frame in split_frames(piece.frames):
            try:
                transcript.add(letta.decode(frame))
            except Exception:  # noqa: BLE001  whatever the bytes say
                unread += 1
        if piece.last_seq <= cursor:
            logger.error("log of a run ends too early", run_id=run.id, after=cursor)
            return
        cursor = piece.last_seq
        await asyncio.sleep(0)
    if unread:
        logger.error("events of a run cannot be read", run_id=run.id, events=unread)
