"""The periodic tasks of a process, and its listener for notifications."""

import random
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from reattach.domain.clock import Clock, SharedClock, sleep_unless_set
from reattach.domain.errors import ReattachError
from reattach.domain.limits import (
    CLOCK_SET_SECONDS,
    RECOVERY_INTERVAL_SECONDS,
    RELEASE_WAIT_SECONDS,
    RELEASE_WAITS,
    SWEEP_BATCH_RUNS,
    SWEEP_INTERVAL_SECONDS,
    WAL_AGE_SECONDS,
)
from reattach.records.records import Records
from reattach.runs.endings import CANCELLED
from reattach.runs.ownership.audit import AUDIT_LOGS_SECONDS
from reattach.runs.service import RunService

logger = structlog.get_logger(__name__)


async def upkeep(
    runs: RunService,
    clock: Clock,
    retention_seconds: float,
    uniform: Callable[[float, float], float] = random.uniform,
) -> None:
    """Recover, sweep and audit at intervals, until cancelled. Failures are logged and retried.

    Runs that this process could not end yet are retried much more often, and runs that another
    process released are looked for at once.
    """
    interval_seconds = min(SWEEP_INTERVAL_SECONDS, retention_seconds / 2)
    due_at = audit_due_at = clock.monotonic_seconds()
    while True:
        is_due = clock.monotonic_seconds() >= due_at
        if is_due or runs.has_pending_recoveries or runs.ownership.shared:
            await _log_failure(runs.recover)
        if is_due:
            due_at = clock.monotonic_seconds() + interval_seconds
            await _log_failure(partial(_sweep_all, runs))
            if clock.monotonic_seconds() >= audit_due_at:
                audit_due_at = clock.monotonic_seconds() + AUDIT_LOGS_SECONDS
                await _log_failure(runs.audit.compare_logs)
        if runs.open_runs.drivers:
            await _log_failure(partial(_note_life, runs))
        seconds = min(interval_seconds, RECOVERY_INTERVAL_SECONDS)
        if runs.ownership.shared:
            seconds = min(seconds, runs.ownership.beat_seconds / 2)
        await sleep_unless_set(clock, seconds, runs.released)
        for _ in range(RELEASE_WAITS):
            if not runs.released.is_set():
                break
            runs.released.clear()
            await clock.sleep(uniform(*RELEASE_WAIT_SECONDS))


async def records_upkeep(records: Records, clock: SharedClock) -> None:
    """Set the clock from the database's and tidy its file at intervals, until cancelled."""
    while True:
        await clock.sleep(min(CLOCK_SET_SECONDS, WAL_AGE_SECONDS))
        await _log_failure(partial(set_clock, records, clock))
        await _log_failure(records.tidy)


async def set_clock(records: Records, clock: SharedClock) -> None:
    """Set the clock from the database's.

    Raises:
        StoreUnavailableError: The database does not answer; the clock is unchanged.
    """
    asked_at_seconds = clock.monotonic_seconds()
    moment = await records.time()
    if moment is not None:
        clock.set(moment, (asked_at_seconds + clock.monotonic_seconds()) / 2)


async def listen(runs: RunService, records: Records, clock: Clock) -> None:
    """Handle the notifications of other processes until cancelled."""

    async def receive() -> None:
        async with records.notifications() as notifications:
            async for notification in notifications:
                runs.handle_notification(notification)

    while True:
        await _log_failure(receive)
        await clock.sleep(RECOVERY_INTERVAL_SECONDS)


async def _log_failure(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except ReattachError as error:
        logger.warning("upkeep failed", reason=error.detail)
    except Exception:
        logger.exception("upkeep failed")


async def _note_life(runs: RunService) -> None:
    for run_id in await runs.ownership.note_life():
        runs.open_runs.end(run_id, CANCELLED)


async def _sweep_all(runs: RunService) -> None:
    while await runs.sweep() == SWEEP_BATCH_RUNS:
        pass
