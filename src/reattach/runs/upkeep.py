"""What a process does for its runs now and then: retention, and runs that it could not end."""

from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from reattach.clock import Clock
from reattach.errors import ReattachError
from reattach.limits import (
    RECOVERY_INTERVAL_SECONDS,
    SWEEP_BATCH_RUNS,
    SWEEP_INTERVAL_SECONDS,
)
from reattach.runs.service import RunService

logger = structlog.get_logger(__name__)


async def keep_up(runs: RunService, clock: Clock, retention_seconds: float) -> None:
    """Sweep and recover at intervals, until cancelled. Faults are logged, and tried again.

    A run that this process could not give its end is tried again much sooner than that.
    """
    interval_seconds = min(SWEEP_INTERVAL_SECONDS, retention_seconds / 2)
    due_at = clock.monotonic_seconds()
    while True:
        if clock.monotonic_seconds() >= due_at:
            due_at = clock.monotonic_seconds() + interval_seconds
            await _tried(partial(_sweep_all, runs))
            await _tried(runs.recover)
        elif runs.has_endless:
            await _tried(runs.recover)
        await clock.sleep(min(interval_seconds, RECOVERY_INTERVAL_SECONDS))


async def _tried(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except ReattachError as error:
        logger.warning("upkeep failed", reason=error.detail)
    except Exception:
        logger.exception("upkeep failed")


async def _sweep_all(runs: RunService) -> None:
    while await runs.sweep() == SWEEP_BATCH_RUNS:
        pass
