"""Routes that send messages, streamed or with one JSON response, and that cancel runs."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Response

from reattach.domain.errors import (
    InvalidArgumentError,
    NoActiveRunsToCancelError,
    NotFoundError,
    OtidConflictError,
    StoreUnavailableError,
    UnavailableError,
    UrlRefusedError,
    engine_error,
)
from reattach.domain.events import RunStatus
from reattach.domain.limits.requests import MAX_ID_CHARS
from reattach.http.api.tokens.bounds import require_allowed
from reattach.http.context import AccessDep, Context, ContextDep
from reattach.http.json import Fault, JsonResponse, invalid
from reattach.http.middleware.access import Access
from reattach.http.parse_send import (
    Addressed,
    SendBody,
    check_agent_id,
    find_addressed,
    find_agent,
    parse_send,
)
from reattach.http.routes import routes
from reattach.http.schemas.fields import AgentPath, ThreadPath
from reattach.http.schemas.run import RunState, run_state
from reattach.http.schemas.sending import (
    AgentSendBody,
    AsyncSendBody,
    CancelBody,
    ConversationSendBody,
    WholeAnswer,
)
from reattach.http.stream.response import RunStream
from reattach.records.base import Run, Thread
from reattach.records.runs.lists.summaries import RunSummary
from reattach.runs.answers import whole_answer
from reattach.runs.following.follow import Target
from reattach.runs.service import Send
from reattach.webhooks.receivers import receiver_url

router = routes()

_SEND_AGAIN = "Send the same request again, with its otid, to get the answer."

_DEPRECATED_SINCE = "@1795305600"
"""The day of the first version, 2026-11-22, in the date format of RFC 9745."""

EVENT_STREAM: dict[str, Any] = {
    "description": (
        "The run's events as server-sent events: one `data: {json}` per event, preceded by "
        "`event: error` for an error, and `data: [DONE]` at the end. A body without `[DONE]` was "
        "cut off: resume with the last `seq_id`."
    ),
    "headers": {
        "X-Run-Id": {"description": "Id of the run.", "schema": {"type": "string"}},
        "X-Run-Status": {
            "description": "Status of the run when the stream opened.",
            "schema": {"type": "string", "enum": [status.value for status in RunStatus]},
        },
        "X-Stream-Starts-After": {
            "description": "The cursor that the stream starts after.",
            "schema": {"type": "integer", "minimum": 0},
        },
    },
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {200: EVENT_STREAM}
STREAM_OR_JSON_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        **EVENT_STREAM,
        "model": WholeAnswer,
        "description": f"{EVENT_STREAM['description']} Or the complete answer as JSON.",
    }
}


async def _refuse_reconnect(
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> None:
    """Refuse the second POST of a client that repeats its request when its stream breaks.

    Raises InvalidArgumentError.
    """
    if last_event_id is not None:
        raise InvalidArgumentError(
            "This request has a Last-Event-ID, so it continues a stream, and a send starts a run.",
            remedy="Continue with GET /v1/conversations/{conversation_id}/stream and this header, "
            "or send without it.",
        )


_SENDS_ONCE = [Depends(_refuse_reconnect)]


@router.post(
    "/v1/conversations/{conversation_id}/messages",
    tags=["conversations"],
    operation_id="send_conversation_message",
    summary="Send a message and stream the answer",
    responses=STREAM_OR_JSON_RESPONSES,
    dependencies=_SENDS_ONCE,
)
async def send_to_conversation(
    conversation_id: ThreadPath, body: ConversationSendBody, context: ContextDep, access: AccessDep
) -> Response:
    require_allowed(access.claims, body)
    if body.agent_id:
        check_agent_id(body.agent_id)
    addressed = await find_addressed(context.records, access.tenant, conversation_id, body.agent_id)
    send = _parse(context, access, addressed, body, "send_conversation_message")
    streams, deprecated = body.streaming is not False, conversation_id.startswith("agent-")
    return await _answer(context, access, send, streams=streams, deprecated=deprecated)


@router.post(
    "/v1/agents/{agent_id}/messages",
    tags=["agents"],
    operation_id="send_message",
    summary="Send a message to an agent's default conversation",
    responses=STREAM_OR_JSON_RESPONSES,
    dependencies=_SENDS_ONCE,
)
async def send_to_agent(
    agent_id: AgentPath, body: AgentSendBody, context: ContextDep, access: AccessDep
) -> Response:
    if not body.streaming:
        _refuse_stream_options(body)
    run_type = "send_message_streaming" if body.streaming else "send_message"
    addressed = await find_agent(context.records, access.tenant, agent_id)
    send = _parse(context, access, addressed, body, run_type)
    return await _answer(context, access, send, streams=bool(body.streaming))


@router.post(
    "/v1/agents/{agent_id}/messages/stream",
    tags=["agents"],
    operation_id="create_agent_message_stream",
    summary="Send a message to an agent's default conversation and stream the answer",
    deprecated=True,
    responses=STREAM_RESPONSES,
    dependencies=_SENDS_ONCE,
)
async def stream_to_agent(
    agent_id: AgentPath, body: AgentSendBody, context: ContextDep, access: AccessDep
) -> Response:
    addressed = await find_agent(context.records, access.tenant, agent_id)
    send = _parse(context, access, addressed, body, "send_message_streaming")
    return await _answer(context, access, send)


@router.post(
    "/v1/agents/{agent_id}/messages/async",
    tags=["agents"],
    operation_id="send_message_async",
    summary="Send a message to an agent's default conversation and return the run at once",
    dependencies=_SENDS_ONCE,
    response_model=RunState,
)
async def send_to_agent_async(
    agent_id: AgentPath, body: AsyncSendBody, context: ContextDep, access: AccessDep
) -> Response:
    callback_url = _callback_url(context, body)
    addressed = await find_agent(context.records, access.tenant, agent_id)
    send = _parse(context, access, addressed, body, "send_message_async")
    run = await _start_run(context, access, replace(send, callback_url=callback_url))
    return JsonResponse(run_state(RunSummary.of(run)))


@router.post(
    "/v1/conversations/{conversation_id}/cancel",
    tags=["conversations"],
    operation_id="cancel_conversation",
    summary="Cancel the active run of a conversation",
    description="Reads no body. Cancel runs by id, also those of a deleted conversation, with "
    "`run_ids` at `POST /v1/agents/{agent_id}/messages/cancel`.",
    response_model=dict[str, str],
)
async def cancel_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    access: AccessDep,
    agent_id: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
) -> Response:
    tenant = access.tenant
    try:
        addressed = await find_addressed(context.records, tenant, conversation_id, agent_id)
    except NotFoundError as error:
        if not conversation_id.startswith("conv-"):
            raise
        raise NotFoundError(
            f"{error.fact}.",
            remedy="To cancel a run of a deleted conversation, send its id in 'run_ids' to POST "
            "/v1/agents/{agent_id}/messages/cancel.",
        ) from None
    done = await context.runs.cancel_thread(tenant, addressed.thread, by=access.actor)
    return JsonResponse(done)


@router.post(
    "/v1/runs/{run_id}/cancel",
    tags=["runs"],
    operation_id="cancel_run",
    summary="Cancel a run",
    description="Reads no body. Returns the resulting status, by the id of the run.",
    response_model=dict[str, str],
)
async def cancel_run(
    run_id: Annotated[str, Path(max_length=MAX_ID_CHARS)], context: ContextDep, access: AccessDep
) -> Response:
    run = await context.runs.by_id(access.tenant, run_id)
    return JsonResponse(await context.runs.cancel([run], by=access.actor))


@router.post(
    "/v1/agents/{agent_id}/messages/cancel",
    tags=["agents"],
    operation_id="cancel_message",
    summary="Cancel runs of an agent",
    response_model=dict[str, str],
)
async def cancel_agent_runs(
    agent_id: AgentPath,
    context: ContextDep,
    access: AccessDep,
    body: CancelBody | None = None,
) -> Response:
    tenant = access.tenant
    if access.claims is None:
        await context.records.agents.get(tenant, agent_id)
    else:  # A token shows nothing of agents, not even that they exist.
        await access.require_runs((body and body.run_ids) or [""])
    if body is None or not body.run_ids:
        thread = Thread(agent_id, None)
        done = await context.runs.cancel_thread(tenant, thread, by=access.actor)
        return JsonResponse(done)
    runs = [await context.runs.by_id(tenant, run_id) for run_id in body.run_ids]
    for run in runs:
        if run.thread.agent_id != agent_id:
            raise NoActiveRunsToCancelError(f"{run.id} is not a run of {agent_id}.")
    return JsonResponse(await context.runs.cancel(runs, by=access.actor))


def _callback_url(context: Context, body: AsyncSendBody) -> str | None:
    """Return the normalized URL. Raises ValidationFailedError."""
    if body.callback_url is None:
        return None
    try:
        return receiver_url(body.callback_url, to_private=context.settings.callbacks_to_private)
    except UrlRefusedError as error:
        fault = Fault(["body", "callback_url"], error.detail, "callback_url")
        raise invalid([fault]) from None


def _refuse_stream_options(body: AgentSendBody) -> None:
    for name, wrong in (
        ("stream_tokens", bool(body.stream_tokens)),
        ("background", bool(body.background)),
        ("include_pings", body.include_pings is False),
    ):
        if wrong:
            message = f"'{name}' requires 'streaming': true."
            raise invalid([Fault(["body", name], message, "needs_streaming")])


def _parse(
    context: Context, access: Access, addressed: Addressed, body: SendBody, run_type: str
) -> Send:
    return parse_send(
        body,
        access.tenant,
        addressed,
        run_type=run_type,
        now=context.clock.now(),
        to_private=context.settings.callbacks_to_private,
    )


async def _start_run(context: Context, access: Access, send: Send) -> Run:
    """Start the run, or find the one of an earlier request.

    Raises:
        OtidConflictError: An OTID was used for a different message.
        QuotaError: The tenant has too many open runs.
    """
    try:
        return await context.runs.send(send, admit=access.use.admit_run)
    except OtidConflictError as conflict:  # OTIDs are unique in a tenant, and a token sees less.
        if await access.covers(str(conflict.extra["run_id"])):
            raise
        raise OtidConflictError(None) from None


async def _answer(
    context: Context, access: Access, send: Send, *, streams: bool = True, deprecated: bool = False
) -> Response:
    """Start the run and stream it from its start, or return its complete answer."""
    run = await _start_run(context, access, send)
    if not streams:
        return await access.during(_whole_answer(context, run, send))
    return RunStream(
        context.runs,
        Target.of(run),
        context.clock,
        include_pings=send.representation.include_pings,
        stall_seconds=context.settings.stall_seconds,
        headers=deprecated_path("messages") if deprecated else None,
    )


def deprecated_path(action: str) -> dict[str, str]:
    """Return deprecation headers for an agent id used as conversation id (RFC 9745, 8288)."""
    link = f'</v1/conversations/default/{action}>; rel="successor-version"'
    return {"deprecation": _DEPRECATED_SINCE, "link": link}


async def _whole_answer(context: Context, run: Run, send: Send) -> Response:
    """Wait for the end of the run and return its complete answer.

    A duplicate request gets the answer of the run that the first one started.
    """
    run = await context.runs.wait_until_settled(run)
    if run.status.is_active and context.runs.draining:
        raise UnavailableError(
            f"The server is shutting down, and {run.id} goes on without it.",
            remedy=_SEND_AGAIN,
            retry_after_seconds=2,
        )
    if run.status.is_active:
        raise StoreUnavailableError(
            f"The answer of {run.id} cannot be stored at present.",
            remedy=_SEND_AGAIN,
        )
    if run.status is RunStatus.FAILED and run.error is not None:
        error = engine_error(run.error.error_type, run.error.message)
        error.extra = {"run_id": run.id}
        raise error
    answer = await whole_answer(
        context.records,
        run,
        send.representation.message_types,
        compaction_messages=send.representation.compaction_messages,
    )
    return JsonResponse(answer)
