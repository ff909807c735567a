"""Continuing a run whose owner is gone: its log is read back, and a driver goes on with it."""

from collections.abc import Callable
from datetime import datetime

import structlog

from reattach.domain.errors import NotFoundError
from reattach.records.base import Run, Settlement
from reattach.records.runs.orphans import TakenOver
from reattach.runs.attempts.plan import decode_plan
from reattach.runs.attempts.policy import Interruption
from reattach.runs.driver import Interrupted
from reattach.runs.drivers import Drivers
from reattach.runs.endings import DRAINED, OWNER_DIED, STORE_FAILED, Ending
from reattach.runs.idempotency import log_aliases
from reattach.runs.observing.observer import Takeover
from reattach.runs.ownership.orphan_log import find_head, is_lost, read_log
from reattach.runs.transcript import Transcript

logger = structlog.get_logger(__name__)

_INTERRUPTED = (OWNER_DIED, DRAINED, STORE_FAILED)
"""The endings of runs that may have been interrupted in the middle of a sound log."""


def interruption_of(run: Run) -> Interruption:
    """Return why the last attempt at an active run without an owner ended."""
    return Interruption.HANDOVER if run.notes.handed_over else Interruption.CRASH


def takeover_of(taken: TakenOver, at: datetime, settlement: Settlement | None = None) -> Takeover:
    """Return the report of a takeover; ``settlement`` is the run's end, if it was ended."""
    name = "" if taken.agent is None else taken.agent.name
    return Takeover(taken.run, interruption_of(taken.run), at, settlement, name)


class Continuing:
    """Starts drivers for runs that were interrupted (P19). ``give_up`` leaves a run to recovery."""

    def __init__(self, drivers: Drivers, give_up: Callable[[Run, Ending], None]) -> None:
        self._drivers = drivers
        self._log = drivers.log
        self._give_up = give_up

    def is_left_to_others(self, run: Run, ending: Ending) -> bool:
        """Whether this process drains and another one, or the next start, may continue the run."""
        is_continuable = self._drivers.policy.enabled and run.turn_plan is not None
        return self._drivers.open_runs.draining and is_continuable and ending in _INTERRUPTED

    async def start(self, taken: TakenOver, ending: Ending) -> bool:
        """Start a driver that continues the run, which this process has taken over.

        Return False, and change nothing but the owner of the log, if the run has to end instead.

        Raises:
            FencedError: The log has a newer token.
            StoreUnavailableError: A store does not answer.
        """
        run, conversation = taken.run, taken.conversation
        plan = decode_plan(run.turn_plan, run.id)
        if ending not in _INTERRUPTED or plan is None:
            return False
        if taken.agent is None or (conversation is None and run.conversation_id is not None):
            return False  # They were deleted, and the run with them.
        interrupted = await self._read(taken, ending)
        if interrupted is None:
            return False
        try:
            driver = self._drivers.make(run, plan, taken.agent, conversation, interrupted)
        except NotFoundError:
            logger.warning("model of a run is not offered", run_id=run.id, model=run.model)
            return False
        takeover = takeover_of(taken, self._drivers.clock.now())
        self._drivers.observer.run_taken_over(takeover)
        self._drivers.start(driver, driver.drive(), self._give_up)
        return True

    async def _read(self, taken: TakenOver, ending: Ending) -> Interrupted | None:
        """Open the log and read it; None if the run cannot be continued from it."""
        run = taken.run
        head = await find_head(run, self._log)
        if is_lost(run, head) or (head is not None and (head.closed or head.tail_uncertain)):
            return None
        writer = await self._log.open(run.id, run.token, aliases=log_aliases(run))
        transcript = Transcript()
        reading = await read_log(run, self._log, writer.head, transcript, taken.hidden)
        by = interruption_of(run)
        allowed = self._drivers.policy.allows(
            run,
            by,
            last_seq=writer.last_seq,
            finished_steps=len(run.notes.steps),
            now=self._drivers.clock.now(),
        )
        if not reading.is_complete or transcript.stopped is not None or not allowed:
            return None
        return Interrupted(by, transcript, writer, reading.size_bytes, ending)
