"""Routes that resume a run's stream, by run id, by OTID, or by conversation.

Each is a POST in the form of the Letta API, and a GET in the form that ``EventSource`` reads.
Others show a run's messages so far, and stream several runs.
"""

from functools import cache
from typing import Annotated, Any, Final

import structlog
from fastapi import Depends, Header, Path, Query, Request, Response

from reattach.domain.errors import EventIdWithoutRunError, ExpiredError, InvalidArgumentError
from reattach.domain.ids import AgentId, ConversationId, Seq, TenantId
from reattach.domain.limits import MAX_CURSOR, REPLAY_SLICE_EVENTS
from reattach.domain.limits.requests import MAX_EVENT_ID_CHARS, MAX_ID_CHARS
from reattach.http.api.sending import EVENT_STREAM, STREAM_RESPONSES, deprecated_path
from reattach.http.context import AccessDep, Context, ContextDep, TenantDep
from reattach.http.json import Fault, invalid
from reattach.http.middleware.access import Access
from reattach.http.routes import routes
from reattach.http.schemas.fields import ThreadPath
from reattach.http.schemas.resuming import (
    FollowBody,
    ResumeBody,
    RunPlace,
    SnapshotState,
    StreamQuery,
)
from reattach.http.stream.framing import LETTA, EventSourceFraming, Framing
from reattach.http.stream.many import Cursor, ManyJob, ManyStream
from reattach.http.stream.response import RunStream, require_background
from reattach.http.stream.snapshot import SnapshotResponse
from reattach.records.base import Thread
from reattach.runs.following.follow import Target
from reattach.runs.idempotency import unknown_otid
from reattach.wire.event_source import EventId, EventIds, parse_event_id

logger = structlog.get_logger(__name__)

router = routes()

LastEventId = Annotated[
    str | None,
    Header(
        max_length=MAX_EVENT_ID_CHARS,
        description="Id of the last event that the client has, as it came: `<seq>`, "
        "`<run_id>:<seq>`, or one of these with `-done`. Overrides `starting_after`. On the route "
        "of a conversation it must name the run, unless `run_id` or `otid` does.",
    ),
]

EVENT_SOURCE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        **EVENT_STREAM,
        "description": (
            "The run's events as server-sent events, each with its `id`, and `event: done` with "
            "`data: [DONE]` at the end. A body without it was cut off: reconnect with the last id. "
            "A body with nothing but `retry` says when to try again."
        ),
    },
    204: {"description": "The client has seen the end: it must not reconnect."},
}


_SNAPSHOT: Final = (
    "Returns the messages of a background run as of its newest event, `seq`, folded as in lists of "
    "messages. Follow the run with `starting_after` set to `seq` to get all later events. Types "
    "that `include_return_message_types` left out of the stream are left out here too."
)


async def _one_last_event_id(request: Request) -> None:
    """Refuse a request with several ids, of which a proxy and this server may pick different ones.

    Raises InvalidArgumentError.
    """
    for name, values in (
        ("Last-Event-ID header", request.headers.getlist("last-event-id")),
        ("last_event_id", request.query_params.getlist("last_event_id")),
    ):
        if len(values) > 1:
            raise InvalidArgumentError(
                f"The request has more than one {name}.",
                remedy="Send only the id of the last event.",
            )


_ONE_POSITION = [Depends(_one_last_event_id)]


_MANY_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": (
            "The events of all runs as server-sent events. Each has the id `<run_id>:<seq>`. "
            "`event: done` with the id `<run_id>:<last seq>-done` is the end of a run; "
            "`event: run_error` says in its data why a run cannot be followed (`run_id`, `status`, "
            "`code`, `detail`). The body ends when all runs have ended."
        ),
        # Without a type, because some programs check the body against it, and others each event.
        "content": {"text/event-stream": {"schema": {}}},
    }
}


@router.post(
    "/v1/conversations/{conversation_id}/stream",
    tags=["conversations"],
    operation_id="retrieve_conversation_stream",
    summary="Resume a run's stream",
    description=(
        "Streams the events of a background run after `starting_after`, then live events until "
        "its end. The run is named by `run_id`, otherwise by `otid`; otherwise it is the active "
        "run of the conversation. Never starts a run."
    ),
    responses=STREAM_RESPONSES,
)
async def resume_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    access: AccessDep,
    body: ResumeBody | None = None,
) -> Response:
    return await conversation_stream(context, access, conversation_id, body or ResumeBody())


@router.post(
    "/v1/runs/{run_id}/stream",
    tags=["runs"],
    operation_id="retrieve_run_stream",
    summary="Resume the stream of one run",
    description="Like the stream of a conversation; ignores `run_id`, `otid` and `agent_id`.",
    responses=STREAM_RESPONSES,
)
async def resume_run(
    run_id: Annotated[str, Path(max_length=MAX_ID_CHARS)],
    context: ContextDep,
    tenant: TenantDep,
    body: ResumeBody | None = None,
) -> Response:
    return await run_stream(context, tenant, run_id, body or ResumeBody())


@router.get(
    "/v1/conversations/{conversation_id}/stream",
    tags=["conversations"],
    operation_id="follow_conversation_stream",
    summary="Follow a run's stream in a browser",
    description=(
        "Streams the same events as the POST, in the form that `EventSource` reads. The ids name "
        "the run, so a client that reconnects gets the run that it had. Never starts a run."
    ),
    responses=EVENT_SOURCE_RESPONSES,
    dependencies=_ONE_POSITION,
)
async def follow_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    access: AccessDep,
    query: Annotated[StreamQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    at = _position(query, last_event_id)
    if at.run_id is not None:
        _check_run(at.run_id, query.run_id)
        query = query.model_copy(update={"run_id": at.run_id})
    elif (last_event_id or query.last_event_id) and query.run_id is query.otid is None:
        raise EventIdWithoutRunError(last_event_id or str(query.last_event_id))
    target = await _find(context, access, conversation_id, query)
    headers = _deprecation(conversation_id)
    ids = EventIds(target.run_id)
    from_snapshot = _begins_with_snapshot(query, last_event_id)
    return await _followed(context, target, query, at, ids, headers, from_snapshot=from_snapshot)


@router.get(
    "/v1/runs/{run_id}/stream",
    tags=["runs"],
    operation_id="follow_run_stream",
    summary="Follow the stream of one run in a browser",
    description="Like the stream of a conversation; ignores `run_id`, `otid` and `agent_id`.",
    responses=EVENT_SOURCE_RESPONSES,
    dependencies=_ONE_POSITION,
)
async def follow_run(
    run_id: Annotated[str, Path(max_length=MAX_ID_CHARS)],
    context: ContextDep,
    access: AccessDep,
    query: Annotated[StreamQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    at = _position(query, last_event_id)
    target = await context.runs.target(access.tenant, run_id)
    if at.run_id is not None:
        _check_run(at.run_id, run_id)
    from_snapshot = _begins_with_snapshot(query, last_event_id)
    return await _followed(
        context, target, query, at, EventIds(), None, from_snapshot=from_snapshot
    )


@router.get(
    "/v1/conversations/{conversation_id}/snapshot",
    tags=["conversations"],
    operation_id="retrieve_conversation_snapshot",
    summary="Retrieve the messages of a run so far",
    description=f"{_SNAPSHOT} The run is found as by the stream of the conversation.",
    response_model=SnapshotState,
)
async def show_conversation_snapshot(
    conversation_id: ThreadPath,
    context: ContextDep,
    access: AccessDep,
    place: Annotated[RunPlace, Query()],
) -> Response:
    target = await _find(context, access, conversation_id, place)
    return _snapshot(context, target)


@router.get(
    "/v1/runs/{run_id}/snapshot",
    tags=["runs"],
    operation_id="retrieve_run_snapshot",
    summary="Retrieve the messages of a run so far",
    description=(
        f"{_SNAPSHOT} With `seq`, the messages as of that event instead, also of a run in the "
        "foreground; an event after the newest one means the newest one."
    ),
    response_model=SnapshotState,
)
async def show_run_snapshot(
    run_id: Annotated[str, Path(max_length=MAX_ID_CHARS)],
    context: ContextDep,
    access: AccessDep,
    seq: Annotated[
        int | None,
        Query(ge=0, le=MAX_CURSOR, description="Number of an event; 0: before the first one."),
    ] = None,
) -> Response:
    target = await context.runs.target(access.tenant, run_id)
    return _snapshot(context, target, None if seq is None else Seq(seq))


@router.post(
    "/v1/streams",
    tags=["runs"],
    operation_id="follow_runs",
    summary="Follow several runs",
    description=(
        "Streams the events of up to 100 background runs over one connection, each after its own "
        "`starting_after`, until all have ended. Never starts a run."
    ),
    responses=_MANY_RESPONSES,
)
async def follow_runs(body: FollowBody, context: ContextDep, access: AccessDep) -> Response:
    await access.require_runs([one.run_id for one in body.runs])
    job = ManyJob(
        context.runs,
        access.tenant,
        context.clock,
        [Cursor(one.run_id, one.starting_after) for one in body.runs],
        named_pings=body.pings == "event",
        stall_seconds=context.settings.stall_seconds,
    )
    return ManyStream(job)


def _snapshot(context: Context, target: Target, as_of: Seq | None = None) -> Response:
    if as_of is None:
        require_background(target)
    return SnapshotResponse(
        context.runs.snapshots, target, context.settings.stall_seconds, as_of=as_of
    )


async def conversation_stream(
    context: Context, access: Access, conversation_id: str, body: ResumeBody
) -> RunStream:
    """Return the response to a resume in a conversation. Raises ReattachError."""
    target = await _find(context, access, conversation_id, body)
    headers = _deprecation(conversation_id)
    return _stream(context, target, body, headers)


def _deprecation(path_id: str) -> dict[str, str] | None:
    """Return the headers for the id of an agent in the path, and log its use."""
    if not path_id.startswith("agent-"):
        return None
    _warn_about_agent_path()
    return deprecated_path("stream")


async def run_stream(
    context: Context, tenant: TenantId, run_id: str, body: ResumeBody
) -> RunStream:
    """Return the response to a resume of one run. Raises ReattachError."""
    return _stream(context, await context.runs.target(tenant, run_id), body)


async def _find(context: Context, access: Access, path_id: str, place: RunPlace) -> Target:
    """Find the run by run_id, then by otid, then as the active one."""
    tenant = access.tenant
    if place.run_id is not None:
        await access.require_runs([place.run_id])
        return await context.runs.target(tenant, place.run_id)
    if place.otid is not None:
        target = await context.runs.target_by_otid(tenant, place.otid)
        if not await access.covers(target.run_id):
            raise unknown_otid(place.otid)
        return target
    return await context.runs.active(tenant, _thread(path_id, place.agent_id))


def _thread(path_id: str, agent_id: str | None) -> Thread:
    """Return the named thread; one that does not exist is reported as having no active run."""
    if path_id.startswith("conv-"):
        return Thread(AgentId(""), ConversationId(path_id))
    return Thread(AgentId(path_id if path_id.startswith("agent-") else agent_id or ""), None)


def _position(query: StreamQuery, header: str | None) -> EventId:
    """Return where the client is. Raises ValidationFailedError."""
    for place, given in (("header", header), ("query", query.last_event_id)):
        if given:
            try:
                return parse_event_id(given)
            except ValueError as error:
                name = "last-event-id" if place == "header" else "last_event_id"
                raise invalid([Fault([place, name], str(error), "event_id")]) from None
    return EventId(None, Seq(query.starting_after), has_ended=False)


def _check_run(of_id: str, of_request: str | None) -> None:
    """Raises InvalidArgumentError if the client's position is in another run."""
    if of_request is not None and of_request != of_id:
        raise InvalidArgumentError(
            f"The Last-Event-ID belongs to {of_id}, and the request names {of_request[:100]}.",
            remedy="Begin the other run without a Last-Event-ID.",
        )


def _begins_with_snapshot(query: StreamQuery, header: str | None) -> bool:
    """A client that reconnects has a state of its own."""
    return query.begin == "snapshot" and not header and not query.last_event_id


async def _has_seen_end(context: Context, target: Target, at: EventId) -> bool:
    """Return whether the position is the end of the run, or the log is gone that could tell."""
    if not at.has_ended or target.status.is_active:
        return False
    try:
        async with await context.runs.follow(target, MAX_CURSOR, prefetches=False) as following:
            return following.cursor == at.seq
    except ExpiredError:
        return True


async def _followed(
    context: Context,
    target: Target,
    query: StreamQuery,
    at: EventId,
    ids: EventIds,
    headers: dict[str, str] | None,
    *,
    from_snapshot: bool,
) -> Response:
    framing = EventSourceFraming(ids, pings=query.pings == "event", from_snapshot=from_snapshot)
    query = query.model_copy(update={"starting_after": at.seq})
    stream = _stream(context, target, query, headers, framing)
    if await _has_seen_end(context, target, at):
        context.meters.resumes.add("end")
        return Response(
            status_code=204, headers={"cache-control": "no-store", "x-run-id": target.run_id}
        )
    return stream


def _stream(
    context: Context,
    target: Target,
    body: ResumeBody,
    headers: dict[str, str] | None = None,
    framing: Framing = LETTA,
) -> RunStream:
    require_background(target)
    hint = body.batch_size if "batch_size" in body.model_fields_set else None
    return RunStream(
        context.runs,
        target,
        context.clock,
        cursor=body.starting_after,
        max_events=REPLAY_SLICE_EVENTS if hint is None else hint,
        include_pings=bool(body.include_pings),
        stall_seconds=context.settings.stall_seconds,
        headers=headers,
        framing=framing,
        resumes=True,
    )


@cache  # once per process
def _warn_about_agent_path() -> None:
    logger.warning(
        "deprecated path used",
        path="/v1/conversations/agent-…/stream",
        instead="/v1/conversations/default/stream with agent_id",
    )
