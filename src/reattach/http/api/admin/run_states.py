"""Schemas of runs as operators see them."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.http.schemas.fields import (
    Answer,
    StopReasonName,
    UtcTime,
    members_of,
    shown_time,
)
from reattach.records.base import RunError
from reattach.records.runs.lists.overview import RunLine
from reattach.runs.inspection.details import RunDetails
from reattach.runs.inspection.live import LiveFigures

PREVIEW_CHARS: Final = 200
_LEAST_RATED_SECONDS: Final = 1.0
"""A mean rate of a shorter run would say thousands of events per second."""


class RunFailure(Answer):
    """The error with which a run failed."""

    error_type: str
    message: str
    detail: str | None

    @classmethod
    def of(cls, error: RunError | None) -> "RunFailure | None":
        return None if error is None else cls(**members_of(error, cls))


class RunItem(Answer):
    """A run with its figures: present ones while it is open, final ones after its end."""

    id: str
    tenant: str
    status: Literal["created", "running", "completed", "failed", "cancelled"]
    stop_reason: StopReasonName | None
    agent_id: str
    agent_name: str | None
    conversation_id: str | None
    model: str | None
    background: bool
    created_at: UtcTime
    completed_at: UtcTime | None
    first_event_seconds: float | None = Field(
        description="Time from the creation of the run to its first event; null if not recorded."
    )
    events: int | None = Field(
        description="Null for an open run of which no process reports, and for runs that ended "
        "before their events were counted."
    )
    events_per_second: float | None = Field(
        description="At present for an open run, on average for an ended one that took a second or "
        "longer."
    )
    bytes: int | None = Field(description="The size of its events.")
    attempts: int
    readers: int = Field(description="Its readers at present, on all processes.")
    owner: str | None = Field(description="Id of the process that drives or drove it.")
    worker: int | None = Field(description="The slot of that process among those of its machine.")
    cancel_requested_at: UtcTime | None
    input_preview: str | None = Field(description="The beginning of the texts that were sent.")
    error: RunFailure | None


def run_item(line: RunLine, live: LiveFigures) -> dict[str, Any]:
    """Return the members of a ``RunItem``, for JSON."""
    members = run_members(line, live)
    failure = members["error"]
    times = {name: shown_time(getattr(line, name)) for name in _TIMES}
    members |= times | {"error": None if failure is None else failure.model_dump()}
    return {name: members[name] for name in _ITEM}


_TIMES: Final = ("created_at", "completed_at", "cancel_requested_at")
_ITEM: Final = tuple(RunItem.model_fields)


def run_members(line: RunLine, live: LiveFigures) -> dict[str, Any]:
    """Return the members of a ``RunItem``."""
    first_at, events, size_bytes = line.first_event_at, line.event_count, line.log_bytes
    rate = _mean_rate(line)
    report = live.runs.get(line.id) if line.status.is_active else None
    if report is not None:
        is_whole = report.last_seq < LOST_LOG_FIRST_SEQ
        events, size_bytes = (report.last_seq if is_whole else None), report.bytes
        rate, first_at = report.events_per_second, first_at or report.first_event_at
    return members_of(line, RunItem) | {
        "first_event_seconds": _seconds(line.created_at, first_at),
        "events": events,
        "events_per_second": None if rate is None else round(rate, 2),
        "bytes": size_bytes,
        "readers": live.readers.get(line.id, 0),
        "owner": line.owner or None,
        "worker": live.workers.get(line.owner),
        "input_preview": (line.input_text or "")[:PREVIEW_CHARS] or None,
        "error": RunFailure.of(line.error),
    }


def _seconds(since: datetime, until: datetime | None) -> float | None:
    return None if until is None else max((until - since).total_seconds(), 0.0)


def _mean_rate(line: RunLine) -> float | None:
    """Return the events per second of an ended run, if they are known."""
    seconds = _seconds(line.created_at, line.completed_at)
    if line.event_count is None or seconds is None or seconds < _LEAST_RATED_SECONDS:
        return None
    return line.event_count / seconds


class RunList(Answer):
    """A page of runs, the newest first."""

    items: list[RunItem]
    active: int = Field(description="The runs that have not ended, whatever the filters are.")
    total: int | None = Field(
        description="The number of runs that match the filters; null if there are more than "
        "10,000, or if counting them would take long."
    )
    has_more: bool


class AttemptState(Answer):
    """The work of one process on a run."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    owner: str | None = Field(description="Id of the process; null if it is not known.")
    token: int | None = Field(description="Its fencing token; null if it is not known.")
    began_at: UtcTime
    ended_at: UtcTime | None = Field(
        description="The end of the run, or the last event before the next attempt, if its time "
        "is recorded."
    )
    after_seq: int = Field(description="The newest event when the attempt before was interrupted.")
    first_seq: int = Field(description="The first event that it added.")
    way: str | None = Field(
        description="How it continued the run: `upstream`, `prefix`, `step` or `ask`; null for the "
        "first one."
    )
    interruption: str | None = Field(
        description="Why the attempt before ended: `crash`, `handover` or `provider`."
    )


class UsageState(Answer):
    """Tokens of a run or step."""

    model_config = ConfigDict(from_attributes=True)

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    step_count: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None


class StepItem(Answer):
    """One call of the model."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    model: str | None
    began_at: UtcTime | None
    ended_at: UtcTime | None = Field(description="The time of its last event, if it is recorded.")
    usage: UsageState | None = Field(description="Null until it has ended.")


class CallItem(Answer):
    """One call of a tool."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    began_seq: int | None = Field(
        description="The event that completed the call; null if an earlier run made it."
    )
    ended_seq: int | None = Field(description="The event with its return.")
    began_at: UtcTime | None
    ended_at: UtcTime | None
    status: Literal["running", "success", "error", "needs_approval", "not_returned"]


class ReaderItem(Answer):
    """A reader at present."""

    process: str
    client: str = Field(description="The name of its program, as it gives it; may be empty.")
    transport: str
    cursor: int = Field(description="The last event that it was sent.")
    lag_events: int
    since: UtcTime


class CutOffItem(Answer):
    """A reader that was cut off before the end of the run."""

    model_config = ConfigDict(from_attributes=True)

    at: UtcTime
    reason: str
    cursor: int = Field(description="The last event that it was sent.")
    client: str
    transport: str
    process: str


class RunReport(RunItem):
    """Everything that is known about a run."""

    first_seq: int | None = Field(description="The first event in its log; null without a log.")
    last_seq: int | None
    log: Literal["open", "closed", "deleted", "lost"]
    log_deleted_at: UtcTime | None
    attempt_list: list[AttemptState]
    steps: list[StepItem]
    tool_calls: list[CallItem] = Field(description="Found in the events; at most 1,000.")
    readers_list: list[ReaderItem]
    cut_offs: list[CutOffItem] = Field(description="The newest 100, the oldest first.")
    usage: UsageState | None = Field(description="Null until the run has ended.")

    @classmethod
    def of_details(cls, details: RunDetails, live: LiveFigures) -> "RunReport":
        run, head = details.run, details.head
        readers = [one for one in live.listed_readers if one[1].run_id == run.id]
        return cls(
            **run_members(details.line, live),
            first_seq=None if head is None else head.first_seq,
            last_seq=None if head is None else head.last_seq,
            log=details.condition.value,
            log_deleted_at=run.log_deleted_at,
            attempt_list=[AttemptState.model_validate(one) for one in details.attempts],
            steps=[StepItem.model_validate(one) for one in details.steps],
            tool_calls=[CallItem.model_validate(one) for one in details.calls],
            readers_list=[
                ReaderItem(process=process, **members_of(reader, ReaderItem))
                for process, reader in readers
            ],
            cut_offs=[CutOffItem.model_validate(one) for one in details.cut_offs],
            usage=None if run.usage is None else UsageState.model_validate(run.usage),
        )
