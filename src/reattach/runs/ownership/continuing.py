"""Continuing a run whose owner is gone: its log is read back, and a driver goes on with it."""

from collections.abc import Awaitable, Callable

import structlog

from reattach.agent.engine_factory import EngineFactory
from reattach.domain.clock import Clock
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import ConversationId
from reattach.log.base import Log
from reattach.records.base import Run, Settlement
from reattach.records.records import Records
from reattach.runs.attempts.plan import RunPlan, decode_plan
from reattach.runs.attempts.policy import ContinuePolicy, Interruption
from reattach.runs.attempts.source import TurnSource
from reattach.runs.driver import Interrupted, RunDriver
from reattach.runs.endings import OWNER_DIED, STORE_FAILED, Ending
from reattach.runs.idempotency import otid_alias
from reattach.runs.open_runs import OpenRuns
from reattach.runs.ownership.orphan_log import find_head, is_lost, read_log
from reattach.runs.transcript import Transcript

logger = structlog.get_logger(__name__)

_INTERRUPTED = (OWNER_DIED, STORE_FAILED)
"""The endings of runs that may have been interrupted in the middle of a sound log."""


class Continuing:
    """Starts drivers for runs that were interrupted (P19). ``give_up`` leaves a run to recovery."""

    def __init__(
        self,
        log: Log,
        records: Records,
        clock: Clock,
        *,
        engine_factory: EngineFactory,
        open_runs: OpenRuns,
        settle: Callable[[Run, Settlement], Awaitable[None]],
        give_up: Callable[[Run, Ending], None],
        policy: ContinuePolicy,
    ) -> None:
        self._log = log
        self._records = records
        self._clock = clock
        self._engine_factory = engine_factory
        self._open_runs = open_runs
        self._settle = settle
        self._give_up = give_up
        self._policy = policy

    async def start(self, run: Run, ending: Ending) -> bool:
        """Start a driver that continues the run, which this process has taken over.

        Return False, and change nothing but the owner of the log, if the run has to end instead.

        Raises:
            FencedError: The log has a newer token.
            StoreUnavailableError: A store does not answer.
        """
        plan = decode_plan(run.turn_plan, run.id)
        if ending not in _INTERRUPTED or plan is None or self._open_runs.draining:
            return False
        source = await self._source(run, plan)
        if source is None:
            return False
        interrupted = await self._read(run, ending)
        if interrupted is None:
            return False
        aliases = [otid_alias(run.tenant, one.otid) for one in run.input if one.otid]
        try:
            driver = RunDriver(
                run,
                plan.representation,
                source=source,
                log=self._log,
                runs=self._records.runs,
                clock=self._clock,
                aliases=aliases if run.background else (),
                settle=self._settle,
                policy=self._policy,
                interrupted=interrupted,
            )
        except NotFoundError:
            logger.warning("model of a run is not offered", run_id=run.id, model=run.model)
            return False
        self._open_runs.start(driver, self._drive(driver))
        return True

    async def _source(self, run: Run, plan: RunPlan) -> TurnSource | None:
        """Return the source of the run's turns; None if its agent or conversation was deleted."""
        conversation = None
        try:
            agent = await self._records.agents.get(run.tenant, run.thread.agent_id)
            if run.conversation_id is not None:
                conversation = await self._records.conversations.get(
                    run.tenant, ConversationId(run.conversation_id)
                )
        except NotFoundError:
            return None
        return TurnSource(
            self._engine_factory, self._records.messages, plan.turn, agent, conversation
        )

    async def _read(self, run: Run, ending: Ending) -> Interrupted | None:
        """Open the log and read it; None if the run cannot be continued from it."""
        head = await find_head(run, self._log)
        if is_lost(run, head) or (head is not None and (head.closed or head.tail_uncertain)):
            return None
        aliases = [otid_alias(run.tenant, one.otid) for one in run.input if one.otid]
        writer = await self._log.open(run.id, run.token, aliases=aliases if run.background else ())
        transcript = Transcript()
        hidden = await self._records.runs.hidden_events(run.id)
        reading = await read_log(run, self._log, writer.head, transcript, hidden)
        by = Interruption.HANDOVER if run.notes.handed_over else Interruption.CRASH
        allowed = self._policy.allows(
            run,
            by,
            last_seq=writer.last_seq,
            finished_steps=len(run.notes.steps),
            now=self._clock.now(),
        )
        if not reading.is_complete or transcript.stopped is not None or not allowed:
            return None
        return Interrupted(by, transcript, writer, reading.size_bytes, ending)

    async def _drive(self, driver: RunDriver) -> None:
        try:
            await driver.drive()
        finally:
            self._open_runs.drivers.pop(driver.run.id, None)
            if driver.given_up:
                self._give_up(driver.run, STORE_FAILED)
