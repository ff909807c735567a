"""How runs end that nobody works on: from their logs, by whoever takes them over."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from reattach.approvals import has_answer
from reattach.clock import Clock
from reattach.errors import FencedError, LogNotFoundError, NotFoundError, StoreUnavailableError
from reattach.events import Event, RunStatus, Stopped, Usage
from reattach.limits import (
    LOST_LOG_FIRST_SEQ,
    RECOVERIES_AT_ONCE,
    REPLAY_SLICE_BYTES,
    SWEEP_BATCH_RUNS,
)
from reattach.log.base import Head, Log
from reattach.messages import ToolCallPart
from reattach.records.base import Run, Settlement
from reattach.records.records import Records
from reattach.runs.endings import CANCELLED, LOG_LOST, OWNER_DIED, POWER_LOST, Ending
from reattach.runs.ownership import Ownership
from reattach.runs.transcript import Transcript
from reattach.wire import letta
from reattach.wire.sse import split_frames

logger = structlog.get_logger(__name__)


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

        A run that can not be ended holds back no other. Raises what was in its way; it is tried
        again by the next call.
        """
        await self._ownership.bury()
        for run in await self._records.runs.orphans(SWEEP_BATCH_RUNS):
            self.give_up(run, OWNER_DIED)
        if not self.endless:
            return
        logger.info("recovering runs", runs=len(self.endless))
        gate = asyncio.Semaphore(RECOVERIES_AT_ONCE)

        async def end(endless: Endless) -> None:
            async with gate:
                await self.end(endless.run, endless.ending)

        ends = [end(endless) for endless in self.endless.values()]
        failures = [
            failure for failure in await asyncio.gather(*ends, return_exceptions=True) if failure
        ]
        for failure in failures:
            logger.warning("run not recovered", reason=str(failure))
        if failures:
            raise failures[0]

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
            owned = await self._own(endless.run)
            if owned is not None:
                endless.run = owned
                ending = CANCELLED if owned.cancel_requested_at else endless.ending
                try:
                    due = await self._due(owned)
                    await end_orphan(owned, ending, self._log, self._clock, self._settle, due=due)
                except FencedError:
                    logger.info("run taken over by another process", run_id=run.id)
            self.endless.pop(run.id, None)
            endless.done.set()

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
        """The calls that the run had to run first, if it answered an approval request."""
        if run.status is RunStatus.CREATED or not has_answer(run.input):
            return []
        pending = await self._records.messages.pending(run.tenant, run.thread)
        return [] if pending is None else pending.due(run.input)

    async def _own(self, run: Run) -> Run | None:
        """Take the run over; None if it has ended or another process was first."""
        owner = self._ownership.owner
        owned = await self._records.runs.take_over(run.id, run.token, owner)
        if owned is not None:
            return owned
        try:  # It is ours all the same if the answer of an earlier try was lost.
            found = await self._records.runs.get(run.tenant, run.id)
        except NotFoundError:
            return None
        return found if found.status.is_active and found.owner == owner else None


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
    conversation keeps what is left of it. Repeating it is safe at every point.

    Raises FencedError if somebody else took the run over meanwhile, StoreUnavailableError if a
    store does not answer.
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
        events: list[Event] = [Stopped(ending.reason)]
        if ending.failure is not None:
            events.append(ending.failure)
        events.append(Usage(step_count=len(transcript.steps_seen())))
        first_seq = head.last_seq + 1
        frames = [letta.encode(event, seq, run.id) for seq, event in enumerate(events, first_seq)]
        await log.append(run.id, run.token, first_seq, frames, close=True)
        for event in events:
            transcript.add(event)
    await settle(run, transcript.settlement(run, transcript.steps_seen(), clock.now()))
    logger.info("run recovered", run_id=run.id, was_closed=head.closed, events=head.last_seq)


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
    """Add the events that the log has to the transcript."""
    cursor = head.first_seq - 1
    while cursor < head.last_seq:
        piece = await log.read(
            run.id, cursor, max_bytes=REPLAY_SLICE_BYTES, max_events=head.last_seq
        )
        for frame in split_frames(piece.frames):
            transcript.add(letta.decode(frame))
        cursor = piece.last_seq
        await asyncio.sleep(0)
