"""Everything that is known about one run, for people who look into it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from reattach.domain.errors import ExpiredError, LogNotFoundError
from reattach.domain.events import RunStatus, Usage
from reattach.domain.ids import FIRST_SEQ, FIRST_TOKEN, Seq, TenantId, Token
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.domain.limits.requests import MAX_PAGE_ITEMS
from reattach.log.base import Head
from reattach.log.commit_times import Stretch
from reattach.records.base import Page, Run
from reattach.records.records import Records
from reattach.records.runs.cut_offs import KeptCutOff
from reattach.records.runs.lists.overview import RunLine
from reattach.records.runs.runs import NOBODY
from reattach.runs.history.timelines import time_of
from reattach.runs.inspection.frames import extent
from reattach.runs.inspection.scan import CallSpan, Scan, Scans
from reattach.runs.service import RunService


class LogCondition(StrEnum):
    """The condition of a run's log."""

    OPEN = "open"
    CLOSED = "closed"
    DELETED = "deleted"
    LOST = "lost"


class CallStatus(StrEnum):
    """The state of a tool call."""

    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    NEEDS_APPROVAL = "needs_approval"
    NOT_RETURNED = "not_returned"
    """The run ended before the tool returned, or the client runs it."""


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """The work of one owner on the run."""

    number: int
    owner: str | None
    token: Token | None
    began_at: datetime
    ended_at: datetime | None
    """The time of its last event, if that is recorded; None for the present one."""
    after_seq: Seq
    first_seq: Seq
    way: str | None
    """How it continued the run; None for the first one."""
    interruption: str | None
    """Why the attempt before it ended."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One call of the model."""

    id: str
    model: str | None
    began_at: datetime | None
    ended_at: datetime | None
    usage: Usage | None
    """None until it has ended."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One call of a tool."""

    id: str
    name: str
    began_seq: Seq | None
    ended_seq: Seq | None
    began_at: datetime | None
    ended_at: datetime | None
    status: CallStatus


@dataclass(frozen=True, slots=True)
class RunDetails:
    line: RunLine
    run: Run
    condition: LogCondition
    head: Head | None
    """None if the log is gone, or not there yet."""
    attempts: Sequence[AttemptFacts]
    steps: Sequence[StepFacts]
    calls: Sequence[CallFacts]
    cut_offs: Sequence[KeptCutOff]


async def look_into(
    runs: RunService, records: Records, scans: Scans, tenant: TenantId | None, run_id: str
) -> RunDetails:
    """Return everything about the run.

    Raises:
        NotFoundError: The tenant, if one is given, has no such run.
        StoreUnavailableError: A store does not answer.
    """
    line, run = await records.overview.get(tenant, run_id)
    target = line.target
    condition, head = LogCondition.DELETED, None
    scan = Scan(FIRST_SEQ)
    stretches: Sequence[Stretch] = ()
    if run.status is RunStatus.CREATED and not await _has_log(runs, run):
        condition = LogCondition.OPEN  # It will be, in a moment.
    elif run.log_deleted_at is None:
        try:
            head = await extent(runs, target)
        except ExpiredError:
            condition = LogCondition.LOST
        else:
            is_lost = head.first_seq >= LOST_LOG_FIRST_SEQ
            condition = LogCondition.CLOSED if head.closed else LogCondition.OPEN
            condition = LogCondition.LOST if is_lost else condition
            scan = await scans.of(runs, target, head)
            stretches = await runs.history.timelines.stretches(target)
    await runs.history.cut_offs.write()
    return RunDetails(
        line,
        run,
        condition,
        head,
        _attempts(run, stretches),
        await _steps(records, run, scan, stretches),
        [_call(run, call_id, call, stretches) for call_id, call in scan.calls.items()],
        await records.cut_offs.of_run(run.id),
    )


async def _has_log(runs: RunService, run: Run) -> bool:
    try:
        await runs.log.head(run.id)
    except LogNotFoundError:
        return False
    return True


def _attempts(run: Run, stretches: Sequence[Stretch]) -> list[AttemptFacts]:
    owner = run.first_owner or (None if run.attempts else run.owner)
    found = [
        AttemptFacts(1, owner, FIRST_TOKEN, run.created_at, None, Seq(0), FIRST_SEQ, None, None)
    ]
    found += [
        AttemptFacts(
            number,
            attempt.owner or None,
            attempt.token,
            attempt.began_at,
            None,
            attempt.after_seq,
            attempt.first_seq,
            attempt.way,
            attempt.interruption,
        )
        for number, attempt in enumerate(run.attempts, 2)
    ]
    ends = [time_of(stretches, later.after_seq) for later in found[1:]]
    # A run without an owner waits for its next attempt.
    is_waiting = run.status.is_active and run.owner == NOBODY
    ends.append(run.interrupted_at if is_waiting else run.completed_at)
    return [replace(one, ended_at=ended) for one, ended in zip(found, ends, strict=True)]


async def _steps(
    records: Records, run: Run, scan: Scan, stretches: Sequence[Stretch]
) -> list[StepFacts]:
    """Return the steps of the records, and those that only the log has."""
    found: dict[str, StepFacts] = {}
    if run.status.is_active:
        for one in run.notes.steps:
            model = one.model or run.model
            found[one.id] = StepFacts(one.id, model, one.started_at, None, one.usage)
    else:
        page = Page(MAX_PAGE_ITEMS, ascending=True)
        for step in await records.runs.steps(run.tenant, run.id, page):
            found[step.id] = StepFacts(step.id, step.model, step.created_at, None, step.usage)
    for step_id, span in scan.steps.items():
        facts = found.get(step_id) or StepFacts(step_id, run.model, None, None, None)
        # The model was asked after the event before; the records round its time to seconds.
        is_first = span.first_seq == FIRST_SEQ
        began_at = run.created_at if is_first else time_of(stretches, span.first_seq - 1)
        ended_at = None if facts.usage is None else time_of(stretches, span.last_seq)
        began_at = began_at or facts.began_at
        found[step_id] = replace(facts, began_at=began_at, ended_at=ended_at)
    return list(found.values())


def _call(run: Run, call_id: str, call: CallSpan, stretches: Sequence[Stretch]) -> CallFacts:
    if call.status is not None:
        status = CallStatus(call.status)
    elif call.needs_approval:
        status = CallStatus.NEEDS_APPROVAL
    else:
        status = CallStatus.RUNNING if run.status.is_active else CallStatus.NOT_RETURNED
    began, ended = call.began_seq, call.ended_seq
    return CallFacts(
        call_id,
        call.name,
        began,
        ended,
        None if began is None else time_of(stretches, began),
        None if ended is None else time_of(stretches, ended),
        status,
    )
