"""The log of a run as a Durable Stream, which its clients may read and not write."""

from typing import Annotated, Any, Final, get_args

from fastapi import Header, Query, Request, Response
from pydantic import Field

from reattach.domain.errors import InvalidArgumentError
from reattach.domain.limits import MAX_STREAM_TOKEN_CHARS
from reattach.http.api.runs import RunPath
from reattach.http.context import AccessDep, ContextDep
from reattach.http.dialects.durable_streams.reading import Live, LogReads, Reading
from reattach.http.routes import routes
from reattach.http.stream.response import require_background
from reattach.wire.dialects.durable_streams import MAX_CURSOR_DIGITS, OFFSET_DIGITS, parse_offset

router = routes("durable-streams")

_SHOWN_CHARS: Final = 100
_MAX_TAGS_CHARS: Final = 1000

_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": (
            "A JSON array of the events after the offset, each as in the stream of the run. "
            "`Stream-Next-Offset` is the offset after them; `Stream-Up-To-Date` says that there "
            "are no more at present, and `Stream-Closed` that none will follow. With `live=sse`, "
            "`data` events with such arrays, each followed by a `control` event with the offset. "
            "A body that ends without `streamClosed` goes on at that offset."
        ),
        "content": {
            "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
            "text/event-stream": {"schema": {}},
        },
    },
    204: {"description": "No events came in time, or none will follow (`Stream-Closed`)."},
    304: {"description": "The client has the body with that entity tag."},
}

# Described here and checked below: the protocol wants 400 for what cannot be read, not 422.
Offset = Annotated[
    Annotated[str, Field(json_schema_extra={"maxLength": OFFSET_DIGITS})] | None,
    Query(
        description=f"`-1`: from the start, the default; `now`: after the last event; or "
        f"{OFFSET_DIGITS} digits as in `Stream-Next-Offset`. Required with `live`.",
    ),
]
LiveMode = Annotated[
    Annotated[str, Field(json_schema_extra={"enum": list(get_args(Live))})] | None,
    Query(
        description="`long-poll`: wait for events if there are none; `sse`: an event stream.",
    ),
]
StreamCursor = Annotated[
    Annotated[str, Field(json_schema_extra={"maxLength": MAX_CURSOR_DIGITS})] | None,
    Query(description="The last `Stream-Cursor`, which distinguishes requests for caches."),
]
Token = Annotated[
    str | None,
    Query(
        max_length=MAX_STREAM_TOKEN_CHARS,
        description="A stream token, for clients that cannot send `Authorization`.",
    ),
]
IfNoneMatch = Annotated[str | None, Header(max_length=_MAX_TAGS_CHARS)]


@router.get(
    "/v1/runs/{run_id}/log",
    operation_id="durable_streams_read_log",
    summary="Read the log of a run as a Durable Stream",
    description=(
        "The events of a background run in the protocol Durable Streams. Offsets are the numbers "
        "of events before them. Never starts a run."
    ),
    responses=_RESPONSES,
)
async def read_log(
    run_id: RunPath,
    request: Request,
    context: ContextDep,
    access: AccessDep,
    offset: Offset = None,
    live: LiveMode = None,
    cursor: StreamCursor = None,
    token: Token = None,  # noqa: ARG001  the authentication reads it
    if_none_match: IfNoneMatch = None,
) -> Response:
    reading = parse_reading(
        request, offset=offset, live=live, cursor=cursor, if_none_match=if_none_match
    )
    target = await context.runs.target(access.tenant, run_id)
    require_background(target)
    return await LogReads(context, target).read(reading, request, access)


@router.head(
    "/v1/runs/{run_id}/log",
    operation_id="durable_streams_describe_log",
    summary="Show where the log of a run ends",
    description="The headers of a read at the end of the log: its type, its end, its closure.",
    responses={200: {"description": "`Stream-Next-Offset`, and `Stream-Closed` after the end."}},
)
async def describe_log(
    run_id: RunPath,
    context: ContextDep,
    access: AccessDep,
    token: Token = None,  # noqa: ARG001  the authentication reads it
) -> Response:
    target = await context.runs.target(access.tenant, run_id)
    require_background(target)
    return await LogReads(context, target).describe()


def parse_reading(
    request: Request,
    *,
    offset: str | None,
    live: str | None,
    cursor: str | None,
    if_none_match: str | None,
) -> Reading:
    """Return what the query of a GET asks for.

    Raises:
        InvalidArgumentError: It is not a read of this protocol.
    """
    if len(request.query_params.getlist("offset")) > 1:
        raise InvalidArgumentError(
            "The request has more than one offset.", remedy="Send only the last one."
        )
    mode: Live | None = None
    for known in get_args(Live):
        if live == known:
            mode = known
    if live is not None and mode is None:
        raise InvalidArgumentError(
            f"live is '{live[:_SHOWN_CHARS]}'.", remedy="Send 'long-poll', 'sse', or no live."
        )
    if mode is not None and offset is None:
        raise InvalidArgumentError(
            f"live={mode} has no offset.",
            remedy="Send the last Stream-Next-Offset; '-1' for the start, 'now' for the end.",
        )
    try:
        after_seq = parse_offset("-1" if offset is None else offset)
    except ValueError as error:
        raise InvalidArgumentError(
            f"The offset is '{(offset or '')[:_SHOWN_CHARS]}'.", remedy=str(error)
        ) from None
    return Reading(after_seq, mode, cursor, if_none_match)
