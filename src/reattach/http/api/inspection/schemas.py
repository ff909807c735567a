"""Schemas of looks into a run."""

from typing import Annotated

from pydantic import Field

from reattach.domain.limits import MAX_CURSOR
from reattach.domain.limits.requests import MAX_FRAMES
from reattach.http.schemas.fields import Answer, Body, UtcTime

Position = Annotated[int, Field(ge=0, le=MAX_CURSOR)]


class FrameQuery(Body):
    """The events to show; by default the newest ones."""

    after_seq: Position | None = Field(
        None, description="Begin with the first event after this one; 0: from the start."
    )
    before_seq: Position | None = Field(
        None,
        description="Only events before this one. Without `after_seq`: the last ones of them.",
    )
    limit: int = Field(
        100, ge=1, le=MAX_FRAMES, description="The most events. A page of large ones has fewer."
    )


class FrameState(Answer):
    """An event as it was sent."""

    seq: int
    type: str = Field(description="Its `message_type`; `unreadable` if its bytes are damaged.")
    at: UtcTime | None = Field(
        description="When it was in the log, so that readers could have it; null if not recorded."
    )
    bytes: int = Field(description="The size of `frame`.")
    frame: str = Field(description="The event in the bytes that its readers got.")


class FrameList(Answer):
    """Consecutive events of a run."""

    first_seq: int = Field(ge=1, description="The first event that the log has.")
    last_seq: int = Field(
        ge=0, le=MAX_CURSOR, description="The last event so far; less than `first_seq`: none."
    )
    items: list[FrameState] = Field(description="In their order, which is that of `seq`.")


class CommitState(Answer):
    """A moment at which events were in the log."""

    seq: int = Field(description="The last of the events that came then.")
    at: UtcTime


class GapState(Answer):
    """A time without events."""

    after_seq: int = Field(description="The event before it; 0: the first one was waited for.")
    seconds: float


class PartState(Answer):
    """Consecutive events without times."""

    first_seq: int
    last_seq: int


class TimelineState(Answer):
    """When the events of a run were in its log."""

    first_seq: int = Field(ge=1, description="The first event that the log has.")
    last_seq: int = Field(ge=0, description="The last event so far.")
    began_at: UtcTime = Field(description="When the run was created.")
    commits: list[CommitState] = Field(
        description=(
            "In their order. Beyond `buckets` some are left out, spread evenly over time, but "
            "never those around the longest gaps."
        )
    )
    gaps: list[GapState] = Field(description="The 50 longest, the longest first.")
    missing: list[PartState] = Field(
        description="Events whose times are not recorded, because the process that wrote them "
        "was killed."
    )
