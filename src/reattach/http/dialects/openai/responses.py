"""Routes of OpenAI's Responses API. A response is a run, and its id is that of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import Header, Path, Query, Request, Response

from reattach.domain.errors import (
    InvalidArgumentError,
    NotFoundError,
    StoreUnavailableError,
    UnavailableError,
)
from reattach.domain.events import Failed, RunStatus, StopReason
from reattach.domain.ids import ConversationId, RunId
from reattach.domain.limits import MAX_INTEGER
from reattach.domain.limits.requests import MAX_ID_CHARS
from reattach.domain.messages import ApprovalPart, Message, ToolCallPart
from reattach.engine.base import ClientTool
from reattach.http.content import check_images
from reattach.http.context import AccessDep, Context, ContextDep
from reattach.http.dialects.openai.agents import agent_of
from reattach.http.dialects.openai.errors import OpenAIErrorBody
from reattach.http.dialects.openai.items import item_page
from reattach.http.dialects.openai.response_bodies import (
    DeletedResponse,
    FunctionTool,
    ItemList,
    ResponseCreate,
    ResponseState,
)
from reattach.http.dialects.openai.response_input import ResponseInput, parse_input
from reattach.http.dialects.sending import (
    DialectSend,
    DialectSendsDep,
    idempotency_key_of,
    is_retry,
)
from reattach.http.dialects.streaming import dialect_stream
from reattach.http.json import Fault, JsonResponse, invalid
from reattach.http.middleware.access import Access
from reattach.http.parse_send import check_schema_size
from reattach.http.routes import routes
from reattach.http.schemas.fields import OrderParam
from reattach.records.base import Agent, Conversation, Run, Target, Thread
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.openai_items import (
    EARLIER_CALLS,
    SERVER_TOOLS,
    SETTINGS,
    input_items,
    response_object,
    run_id_of,
)
from reattach.wire.dialects.openai_responses import ResponseFold, Responses

router = routes("openai", error=OpenAIErrorBody)

_FAMILY: Final = "openai"
_DIALECT: Final = Responses()
_FORM: Final = {"stream", "stream_options", "background", "include"}
"""The members of a request that belong to the form of its answer."""
_SEND_AGAIN: Final = "Send the same request again, with its Idempotency-Key, to get the response."

ResponsePath = Annotated[
    str, Path(max_length=MAX_ID_CHARS, description="Id of the response, `resp_…`.")
]
ServerToolsHeader = Annotated[
    Literal["mcp_call", "function_call"] | None,
    Header(
        alias="x-reattach-server-tools",
        description="The form of calls that the server runs: an `mcp_call`, or a `function_call` "
        "with its `function_call_output`, which some user interfaces show better.",
    ),
]

_STREAM: Final[dict[str, Any]] = {
    "description": "The response, or with `stream` its events, each with a `sequence_number`. A "
    "stream without `response.completed`, `response.incomplete` or `response.failed` was cut off: "
    "continue after the last number with `starting_after`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "model": ResponseState,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a response continues."""

    agent: Agent
    conversation: Conversation | None = None
    after: Run | None = None

    @property
    def thread(self) -> Thread | None:
        if self.after is not None:
            return self.after.thread
        return Thread(self.agent.id, self.conversation.id) if self.conversation else None


@router.post(
    "/openai/v1/responses",
    operation_id="openai_create_response",
    summary="Send input to an agent",
    description="Every response can be retrieved, streamed again and cancelled, with `background` "
    "or without it. A request that is sent again with the same `Idempotency-Key` gets the first "
    "one's response.",
    response_model=ResponseState,
    responses={200: _STREAM},
)
async def create_response(
    request: Request,
    body: ResponseCreate,
    context: ContextDep,
    access: AccessDep,
    sends: DialectSendsDep,
    server_tools: ServerToolsHeader = None,
) -> Response:
    place = await _place_of(context, access, body)
    parsed = parse_input(body.input, context.clock.now(), is_known=place.thread is not None)
    to_private = context.settings.callbacks_to_private
    check_images((*parsed.earlier, *parsed.new), to_private=to_private)
    given = _given(body, server_tools)
    if any(isinstance(part, ApprovalPart) for part in parsed.new[0].parts):
        given[EARLIER_CALLS] = await _waiting_calls(context, access, place, parsed)
    send = DialectSend(
        dialect=_FAMILY,
        agent=place.agent,
        messages=parsed.new,
        payload=body.model_dump(mode="json", exclude_unset=True, exclude=_FORM),
        conversation=place.conversation,
        after=place.after,
        idempotency_key=idempotency_key_of(request),
        is_retry=is_retry(request),
        client_tools=_client_tools(body),
        system_suffix=body.instructions,
        given=given,
        hides_conversation=body.store is False or bool(parsed.earlier),
        earlier=parsed.earlier,
    )
    run = await sends.start(access, send)
    if body.stream:
        return dialect_stream(context, run, _DIALECT)
    if not body.background:
        return await access.during(_whole(context, run))
    if run.status is RunStatus.CREATED:
        return JsonResponse(response_object(facts_of(run), "queued", []))
    return JsonResponse(await _response(context, run))


@router.get(
    "/openai/v1/responses/{response_id}",
    operation_id="openai_retrieve_response",
    summary="Retrieve a response, or stream it from an event on",
    response_model=ResponseState,
    responses={200: _STREAM},
)
async def retrieve_response(
    response_id: ResponsePath,
    context: ContextDep,
    access: AccessDep,
    stream: bool = False,
    starting_after: Annotated[
        int | None,
        Query(ge=0, le=MAX_INTEGER - 1, description="With `stream`: the last number received."),
    ] = None,
) -> Response:
    run = await _run_of(context, access, response_id)
    if not stream:
        return JsonResponse(await _response(context, run))
    cursor = 0 if starting_after is None else starting_after + 1
    return dialect_stream(context, run, _DIALECT, cursor=cursor, resumes=True)


@router.post(
    "/openai/v1/responses/{response_id}/cancel",
    operation_id="openai_cancel_response",
    summary="Cancel a response",
    description="Reads no body. A response that has ended stays as it is; without its output once "
    "its events are deleted.",
    response_model=ResponseState,
)
async def cancel_response(
    response_id: ResponsePath, context: ContextDep, access: AccessDep
) -> Response:
    run = await _run_of(context, access, response_id)
    await context.runs.cancel([run], by=access.actor)
    run = await context.runs.by_id(access.tenant, run.id)
    if run.log_deleted_at is not None:
        return JsonResponse(_recorded_response(run))
    return JsonResponse(await _response(context, run))


@router.delete(
    "/openai/v1/responses/{response_id}",
    operation_id="openai_delete_response",
    summary="Delete a response",
    description="Its messages stay in the conversation. An active response gets 409.",
)
async def delete_response(
    response_id: ResponsePath, context: ContextDep, access: AccessDep
) -> DeletedResponse:
    run = await _run_of(context, access, response_id)
    await context.records.runs.delete(access.tenant, run.id, by=access.actor)
    await context.runs.delete_logs([run.id])
    await context.records.runs.mark_log_deleted([run.id], context.clock.now())
    context.translations.forget(run.id)
    return DeletedResponse(id=response_id)


@router.get(
    "/openai/v1/responses/{response_id}/input_items",
    operation_id="openai_list_input_items",
    summary="List the input of a response",
)
async def list_input_items(
    response_id: ResponsePath,
    context: ContextDep,
    access: AccessDep,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: OrderParam = "desc",
) -> ItemList:
    run = await _run_of(context, access, response_id)
    items = [item for message in run.input for item in input_items(message)]
    return item_page(items if order == "asc" else items[::-1], after=after, limit=limit)


# Sending.


async def _place_of(context: Context, access: Access, body: ResponseCreate) -> _Place:
    """Return the agent of a request, and the conversation that it continues.

    Raises:
        NotFoundError: A part of it does not exist.
        InvalidArgumentError: The parts contradict each other.
    """
    if body.conversation is not None and body.previous_response_id is not None:
        raise InvalidArgumentError(
            "The request has both 'conversation' and 'previous_response_id'.",
            remedy="Send one of them.",
        )
    conversation, after = None, None
    if body.previous_response_id is not None:
        after = await _run_of(context, access, body.previous_response_id)
    elif body.conversation is not None:
        given = body.conversation
        conversation_id = ConversationId(given if isinstance(given, str) else given.id)
        conversation = await context.records.conversations.get(access.tenant, conversation_id)
    if body.model is not None:
        agent = await agent_of(context.records, access.tenant, body.model)
    elif after is not None:
        agent = await context.records.agents.get(access.tenant, after.thread.agent_id)
    elif conversation is not None:
        agent = await context.records.agents.get(access.tenant, conversation.agent_id)
    else:
        message = "Name an agent by its id or name; GET /openai/v1/models lists them."
        raise invalid([Fault(["body", "model"], message, "missing")])
    place = _Place(agent, conversation, after)
    if place.thread is not None and place.thread.agent_id != agent.id:
        raise InvalidArgumentError(
            f"The conversation belongs to {place.thread.agent_id}, and the request names "
            f"{agent.id}.",
            remedy="Leave out 'model', or begin a new conversation.",
        )
    return place


def _given(body: ResponseCreate, server_tools: str | None) -> dict[str, Any]:
    """Return the members of the request that the response repeats."""
    names = {*SETTINGS, "metadata", "model", "background"}
    given = body.model_dump(mode="json", include=names, exclude_none=True)
    if body.tools is not None:
        given["tools"] = [tool.model_dump(mode="json") for tool in body.tools]
    if server_tools is not None:
        given[SERVER_TOOLS] = server_tools
    return given


def _client_tools(body: ResponseCreate) -> tuple[ClientTool, ...]:
    """Return the tools that the client runs.

    Raises ValidationFailedError for a repeated name and for a schema that is too large.
    """
    if body.tool_choice == "none":
        return ()
    tools: dict[str, ClientTool] = {}
    for number, tool in enumerate(body.tools or ()):
        if not isinstance(tool, FunctionTool):
            continue
        if tool.name in tools:
            fault = Fault(
                ["body", "tools", number, "name"], "Another tool has this name.", "unique"
            )
            raise invalid([fault])
        check_schema_size(tool.parameters, ["body", "tools", number, "parameters"])
        tools[tool.name] = ClientTool(tool.name, tool.description, tool.parameters)
    return tuple(tools.values())


async def _waiting_calls(
    context: Context, access: Access, place: _Place, parsed: ResponseInput
) -> Mapping[str, tuple[str, bool]]:
    """Return the arguments of the calls that wait, and whether it is for an approval.

    Raises:
        InvalidArgumentError: The agent did not ask for the approval of a call, so the request for
            it, in a conversation that the client keeps, may be forged.
    """
    messages: Sequence[Message] = parsed.earlier
    if place.thread is not None:
        pending = await context.records.messages.pending(access.tenant, place.thread)
        messages = [] if pending is None else [pending.request]
    waiting = {
        part.tool_call_id: part
        for message in messages
        for part in message.parts
        if isinstance(part, ToolCallPart)
    }
    if place.thread is None:
        asked = await context.records.messages.asked_calls(access.tenant, place.agent.id)
        for part in parsed.new[0].parts:
            call = waiting.get(part.tool_call_id) if isinstance(part, ApprovalPart) else None
            if call is not None and call not in asked:
                raise InvalidArgumentError(
                    f"{place.agent.id} has not asked lately for an approval of the call "
                    f"{call.tool_call_id[:100]} of '{call.name[:100]}' with these arguments.",
                    remedy="Send 'previous_response_id' with the id of the response that has the "
                    "mcp_approval_request, and only the answer as 'input'.",
                )
    return {call_id: (part.arguments, part.needs_approval) for call_id, part in waiting.items()}


# Responses.


async def _run_of(context: Context, access: Access, response_id: str) -> Run:
    """Return the run of a response. Raises NotFoundError."""
    run_id = run_id_of(response_id)
    if run_id is not None:
        try:
            return await context.runs.by_id(access.tenant, RunId(run_id))
        except (NotFoundError, InvalidArgumentError):
            pass  # The client does not know the id of the run.
    raise NotFoundError(f"Response not found with id={response_id}")


async def _response(context: Context, run: Run) -> dict[str, Any]:
    """Return the response of a run as far as it has got.

    Raises:
        ExpiredError: Its events were deleted after their retention.
        StoreUnavailableError: The log does not answer.
    """
    target = Target.of(run)
    async with context.translations.state(target, _DIALECT, facts_of(run)) as fold:
        assert isinstance(fold, ResponseFold)
        response = fold.response()
    if fold.has_ended:  # So that a request that continues the conversation finds it free.
        await context.runs.is_settled_in_time(target)
    return response


def _recorded_response(run: Run) -> dict[str, Any]:
    """Return the response of an ended run without its output, which went with its events."""
    error, is_cut = run.error, run.stop_reason is StopReason.MAX_TOKENS
    return response_object(
        facts_of(run),
        "incomplete" if is_cut else _ENDS[run.status],
        [],
        usage=run.usage,
        failed=None if error is None else Failed(error.error_type, error.message, error.detail),
        incomplete_reason="max_output_tokens" if is_cut else None,
        completed_at=int(run.completed_at.timestamp())
        if run.completed_at is not None and run.status is RunStatus.COMPLETED and not is_cut
        else None,
    )


_ENDS: Final[Mapping[RunStatus, str]] = {
    RunStatus.COMPLETED: "completed",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}


async def _whole(context: Context, run: Run) -> Response:
    """Wait for the end of the run and return its response."""
    run = await context.runs.wait_until_settled(run)
    if run.status.is_active and context.runs.draining:
        raise UnavailableError(
            "The server is shutting down, and the response goes on without it.",
            remedy=_SEND_AGAIN,
            retry_after_seconds=2,
        )
    if run.status.is_active:
        raise StoreUnavailableError("The response cannot be stored at present.", remedy=_SEND_AGAIN)
    return JsonResponse(await _response(context, run))
