"""Schemas of runs as operators see them."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field

from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.http.schemas.fields import Answer, StopReasonName, UtcTime, members_of
from reattach.records.base import RunError
from reattach.records.runs.overview import RunLine
from reattach.runs.inspection.live import LiveFigures

PREVIEW_CHARS: Final = 200


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
        description="At present for an open run, on average for an ended one."
    )
    bytes: int | None = Field(description="The size of its events.")
    attempts: int
    readers: int = Field(description="Its readers at present, on all processes.")
    owner: str | None = Field(description="Id of the process that drives or drove it.")
    worker: int | None = Field(description="The slot of that process among those of its machine.")
    cancel_requested_at: UtcTime | None
    input_preview: str | None = Field(description="The beginning of the texts that were sent.")
    error: RunFailure | None

    @classmethod
    def of(cls, line: RunLine, live: LiveFigures) -> "RunItem":
        return cls(**run_members(line, live))


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
    if line.event_count is None or not seconds:
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
