"""Routes for the events of a run as its log has them."""

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import Query, Response

from reattach.domain.ids import Seq
from reattach.domain.limits.requests import MAX_BUCKETS
from reattach.http.api.inspection.schemas import (
    CommitState,
    FrameList,
    FrameQuery,
    GapState,
    PartState,
    TimelineState,
)
from reattach.http.api.runs import RunPath
from reattach.http.context import ContextDep, TenantDep
from reattach.http.routes import routes
from reattach.records.base import Target
from reattach.runs.history.timelines import join, time_of
from reattach.runs.inspection.frames import extent, read_page
from reattach.wire.sse import frame_data

router = routes("runs")


class _Typed(msgspec.Struct):
    """The member of an event that says what it is."""

    message_type: str


class _Frame(msgspec.Struct):
    seq: Seq
    type: str
    at: datetime | None
    bytes: int
    frame: str


class _Frames(msgspec.Struct):
    first_seq: Seq
    last_seq: Seq
    items: list[_Frame]


_type_of = msgspec.json.Decoder(_Typed).decode


@router.get(
    "/v1/runs/{run_id}/frames",
    operation_id="list_frames_for_run",
    summary="List the events of a run around a position",
    description=(
        "The events in the bytes in which readers get them, of active and ended runs, also of "
        "those in the foreground. Without a position, the newest ones. Never waits for events."
    ),
    response_model=FrameList,
)
async def list_frames(
    run_id: RunPath, context: ContextDep, tenant: TenantDep, query: Annotated[FrameQuery, Query()]
) -> Response:
    target = await context.runs.target(tenant, run_id)
    page = await read_page(
        context.runs,
        target,
        after_seq=None if query.after_seq is None else Seq(query.after_seq),
        before_seq=None if query.before_seq is None else Seq(query.before_seq),
        limit=query.limit,
    )
    stretches = await context.runs.history.timelines.stretches(target)
    items = [
        _Frame(
            seq,
            _type(frame),
            time_of(stretches, seq),
            len(frame),
            frame.decode(errors="replace"),
        )
        for seq, frame in page.frames
    ]
    answer = _Frames(page.head.first_seq, page.head.last_seq, items)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _type(frame: bytes) -> str:
    try:
        return _type_of(frame_data(frame)).message_type
    except ValueError:  # Its bytes are damaged, and shown as they are.
        return "unreadable"


@router.get(
    "/v1/runs/{run_id}/timeline",
    operation_id="retrieve_timeline_for_run",
    summary="Show when the events of a run came",
    description=(
        "The times at which events were in the log, as far as they are recorded, and the longest "
        "times without events. They are kept as long as the events."
    ),
)
async def show_timeline(
    run_id: RunPath,
    context: ContextDep,
    tenant: TenantDep,
    buckets: Annotated[
        int, Query(ge=1, le=MAX_BUCKETS, description="The most commits in the answer.")
    ] = 200,
) -> TimelineState:
    run = await context.runs.by_id(tenant, run_id)
    target = Target.of(run)
    stretches = await context.runs.history.timelines.stretches(target)
    head = await extent(context.runs, target)
    timeline = join(run, head, stretches, buckets)
    return TimelineState(
        first_seq=head.first_seq,
        last_seq=head.last_seq,
        began_at=timeline.began_at,
        commits=[CommitState(seq=seq, at=at) for seq, at in timeline.commits],
        gaps=[
            GapState(after_seq=gap.after_seq, seconds=gap.milliseconds / 1000)
            for gap in timeline.gaps
        ],
        missing=[PartState(first_seq=first, last_seq=last) for first, last in timeline.missing],
    )
