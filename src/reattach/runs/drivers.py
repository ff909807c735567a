"""The drivers of one process: how each is made and started."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from reattach.agent.engine_factory import EngineFactory
from reattach.domain.clock import Clock
from reattach.domain.ids import Seq
from reattach.log.base import Log
from reattach.meters.meters import Meters
from reattach.records.base import Agent, Conversation, Run, Settlement
from reattach.records.records import Records
from reattach.runs.attempts.plan import RunPlan
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.attempts.source import TurnSource
from reattach.runs.driver import Interrupted, RunDriver
from reattach.runs.endings import STORE_FAILED, Ending
from reattach.runs.idempotency import log_aliases
from reattach.runs.observing.observer import RunObserver
from reattach.runs.open_runs import OpenRuns


@dataclass(frozen=True, slots=True)
class Drivers:
    """Makes the drivers of new and of interrupted runs.

    ``settle`` writes a run's settlement; the Seq is that of the newest event of its log.
    """

    log: Log
    records: Records
    clock: Clock
    engine_factory: EngineFactory
    open_runs: OpenRuns
    policy: ContinuePolicy
    settle: Callable[[Run, Settlement, Seq], Awaitable[None]]
    observer: RunObserver
    meters: Meters

    def make(
        self,
        run: Run,
        plan: RunPlan,
        agent: Agent,
        conversation: Conversation | None,
        interrupted: Interrupted | None = None,
    ) -> RunDriver:
        """Return a driver of the run; ``interrupted`` is the attempt that it continues.

        Raises:
            NotFoundError: The run's model is not offered.
        """
        source = TurnSource(
            self.engine_factory, self.records.messages, plan.turn, agent, conversation
        )
        return RunDriver(
            run,
            plan.representation,
            source=source,
            log=self.log,
            runs=self.records.runs,
            clock=self.clock,
            aliases=log_aliases(run),
            settle=self.settle,
            policy=self.policy,
            observer=self.observer,
            interrupted=interrupted,
        )

    def start(
        self,
        driver: RunDriver,
        work: Coroutine[Any, Any, None],
        give_up: Callable[[Run, Ending], None],
    ) -> None:
        """Do ``work`` with the driver, in a task of its own; then leave the run if it was given up.

        ``give_up`` leaves a run to recovery.
        """
        self.open_runs.start(driver, self._finish(driver, work, give_up))

    async def _finish(
        self,
        driver: RunDriver,
        work: Coroutine[Any, Any, None],
        give_up: Callable[[Run, Ending], None],
    ) -> None:
        try:
            await work
        finally:
            driver.opened.set()
            driver.done.set()
            self.open_runs.remove(driver)
            if driver.given_up:
                give_up(driver.run, STORE_FAILED)
