"""The log lines of a run: one when it begins, one when it goes on, one when it ends."""

from typing import Any

import structlog

from reattach.domain.ids import Seq
from reattach.records.base import Run, Settlement

logger = structlog.get_logger(__name__)


def log_beginning(run: Run) -> None:
    """Log that a new run is driven by this process."""
    logger.info("run began", **_facts(run))


def log_continuation(run: Run) -> None:
    """Log that this process has an interrupted run and a driver for it."""
    logger.info("run continues", **_facts(run), attempts=len(run.attempts) + 1)


def log_end(run: Run, settlement: Settlement, last_seq: Seq) -> None:
    """Log that the run has ended, by its driver or by a recovery; ``last_seq`` is its last event.

    The log of a run that has lost it begins late, so its last number is not the number of events.
    The line has everything that a report about runs needs, so that no other line has to be read.
    """
    usage = settlement.usage
    seconds = (settlement.completed_at - run.created_at).total_seconds()
    logger.info(
        "run ended",
        **_facts(run),
        outcome=settlement.stop_reason.value,
        error=None if settlement.error is None else settlement.error.error_type,
        attempts=len(run.attempts) + 1,
        steps=len(settlement.steps),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        events=last_seq if settlement.log is None else settlement.log.event_count,
        seconds=round(seconds, 3),
    )


def _facts(run: Run) -> dict[str, Any]:
    traced = {} if run.traceparent is None else {"trace_id": run.traceparent.split("-")[1]}
    return traced | {
        "run_id": run.id,
        "tenant": run.tenant,
        "agent_id": run.thread.agent_id,
        "conversation_id": run.conversation_id,
        "model": run.model,
    }
