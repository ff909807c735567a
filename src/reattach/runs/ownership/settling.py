"""Writing the settlement of a run: its end, in the records."""

from collections.abc import Callable

import structlog

from reattach.agent.engine_factory import EngineFactory
from reattach.domain.backoff import until_available
from reattach.domain.clock import Clock
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.events import RunStatus
from reattach.domain.ids import Seq
from reattach.records.base import Run, Settlement
from reattach.records.records import Records
from reattach.runs.observing.lines import log_end
from reattach.runs.observing.observer import RunObserver
from reattach.runs.ownership.retention import Retention


class SettlementWriter:
    """Writes settlements, and does everything that follows from one."""

    def __init__(
        self,
        records: Records,
        clock: Clock,
        retention: Retention,
        engine_factory: EngineFactory,
        observer: RunObserver,
    ) -> None:
        self._records = records
        self._clock = clock
        self._retention = retention
        self._engine_factory = engine_factory
        self._observer = observer
        self.callback_due: Callable[[], None] = lambda: None
        """Called when a callback may be due."""

    async def write(self, run: Run, settlement: Settlement, last_seq: Seq) -> None:
        """Write the settlement, with retries while the store does not answer, and report it.

        ``last_seq`` is the newest event of the run's log.

        Raises:
            StoreUnavailableError: The store did not answer for APPEND_RETRY_SECONDS.
        """
        is_unsure = False

        async def settle() -> bool:
            nonlocal is_unsure
            # A jump is noted first: the end may be a time of a wrong clock.
            await self._retention.check_clock()
            try:
                return await self._records.runs.settle(run.id, settlement)
            except StoreUnavailableError:
                is_unsure = True
                raise

        has_ended = await until_available(self._clock, settle)
        # After an unconfirmed call, "it had ended before" may mean "by that call".
        if has_ended or is_unsure:
            log_end(run, settlement, last_seq)
            self._observer.run_ended(run, settlement)
        if run.callback_url is not None:
            self.callback_due()
        upstream_id = run.notes.unfinished_upstream_id
        if upstream_id is not None and settlement.stop_reason.run_status is not RunStatus.COMPLETED:
            # Not before the end is settled: until then, another process may continue the run.
            with structlog.contextvars.bound_contextvars(run_id=run.id):
                await self._engine_factory.cancel_upstream(run.model or "", upstream_id)
