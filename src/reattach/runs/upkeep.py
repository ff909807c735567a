"""What a process does for its runs now and then: retention, and runs that it could not end."""

from functools import partial

import structlog

from reattach.clock import Clock
from reattach.errors import ReattachError
from reattach.limits import SWEEP_BATCH_RUNS, SWEEP_INTERVAL_SECONDS
from reattach.runs.service import RunService

logger = structlog.get_logger(__name__)


async def keep_up(runs: RunService, clock: Clock, retention_seconds: float) -> None:
    """Sweep and recover at intervals, until cancelled. Faults are logged, and tried again."""
    interval_seconds = min(SWEEP_INTERVAL_SECONDS, retention_seconds / 2)
    while True:
        for work in (partial(_sweep_all, runs), runs.recover):
            try:
                await work()
            except ReattachError as error:
                logger.warning("upkeep failed", reason=error.detail)
            except Exception:
                logger.exception("upkeep failed")
        await clock.sleep(interval_seconds)


async def _sweep_all(runs: RunService) -> None:
    while await runs.sweep() == SWEEP_BATCH_RUNS:
        pass
