"""The route of Chat Completions. A completion is the output of one run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import Request, Response

from reattach.domain.errors import (
    ConflictError,
    ConversationBusyError,
    ExpiredError,
    PendingApprovalError,
    StoreUnavailableError,
    UnavailableError,
    engine_error,
)
from reattach.domain.events import RunStatus, Usage
from reattach.engine.base import ClientTool
from reattach.http.content import check_images
from reattach.http.context import AccessDep, Context, ContextDep
from reattach.http.dialects.openai.agents import agent_of
from reattach.http.dialects.openai.chat_bodies import ChatCompletion, ChatCompletionCreate
from reattach.http.dialects.openai.chat_input import parse_chat
from reattach.http.dialects.openai.chat_keys import chat_key_of
from reattach.http.dialects.openai.errors import OpenAIErrorBody
from reattach.http.dialects.openai.leaving import Leaving, wait_until_cancelled
from reattach.http.dialects.sending import (
    DialectSend,
    DialectSends,
    DialectSendsDep,
    idempotency_key_of,
    is_retry,
)
from reattach.http.dialects.streaming import dialect_stream
from reattach.http.json import Fault, JsonResponse, invalid
from reattach.http.middleware.access import Access
from reattach.http.parse_send import check_schema_size
from reattach.http.routes import routes
from reattach.records.base import Run
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.chat_completions import ChatCompletions, completion

router = routes("openai", error=OpenAIErrorBody)

FAMILY: Final = "chat_completions"
_PLAIN: Final = ChatCompletions()
_WITH_USAGE: Final = ChatCompletions(includes_usage=True)
_FORM: Final = {"stream", "stream_options"}
"""The members of a request that belong to the form of its answer."""
_SEND_AGAIN: Final = "Send the same request again, with its Idempotency-Key, to get the answer."

_MAX_LEFT: Final = 100
"""The times that a client may leave the answer to one request and get another one."""

_TEXT_HEADER: Final = {"schema": {"type": "string"}}
_ANSWER: Final[dict[str, Any]] = {
    "description": "The answer; with `stream` its chunks as server-sent events, and `data: [DONE]` "
    "at the end. A stream without it was cut off, and the run goes on without its reader.",
    "headers": {
        "X-Run-Id": {"description": "Id of the run.", **_TEXT_HEADER},
        "X-Conversation-Id": {"description": "Id of its conversation.", **_TEXT_HEADER},
    },
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "model": ChatCompletion,
}


@router.post(
    "/openai/v1/chat/completions",
    operation_id="openai_create_chat_completion",
    summary="Create a chat completion",
    description="The header `X-Reattach-Chat-Key` names a conversation, which keeps the new "
    "messages and the answer. Without it the request has a hidden conversation of its own, which "
    "begins with the messages that were sent. A request that is sent again with the same "
    "`Idempotency-Key` gets the answer to the first one.",
    response_model=ChatCompletion,
    responses={200: _ANSWER},
)
async def create_chat_completion(
    request: Request,
    body: ChatCompletionCreate,
    context: ContextDep,
    access: AccessDep,
    sends: DialectSendsDep,
) -> Response:
    send = await _parse(request, body, context, access)
    run = await _start(sends, access, send, context)
    leaving = Leaving(context, access, run, request)
    if body.stream:
        options = body.stream_options
        dialect = _WITH_USAGE if options is not None and options.include_usage else _PLAIN
        return dialect_stream(
            context, run, dialect, headers=_headers_of(run), on_leave=leaving.on_leave
        )
    async with leaving.watching():
        return await access.during(_whole(context, run))


async def _parse(
    request: Request, body: ChatCompletionCreate, context: Context, access: Access
) -> DialectSend:
    agent = await agent_of(context.records, access.tenant, body.model)
    named = chat_key_of(request.headers, streams=bool(body.stream))
    chat = parse_chat(body.messages, context.clock.now())
    to_private = context.settings.callbacks_to_private
    check_images((*chat.earlier, *chat.new), to_private=to_private)
    return DialectSend(
        dialect=FAMILY,
        agent=agent,
        messages=chat.new,
        payload=body.model_dump(mode="json", exclude_unset=True, exclude=_FORM),
        key=named.key,
        idempotency_key=idempotency_key_of(request),
        is_retry=is_retry(request),
        client_tools=_client_tools(body),
        without_tools=named.is_job,
        system_suffix=chat.instructions,
        given={"model": body.model},
        hides_conversation=named.key is None,
        earlier=chat.earlier,
    )


async def _start(sends: DialectSends, access: Access, send: DialectSend, context: Context) -> Run:
    """Start the run, or find that of an earlier request.

    A run that is being cancelled because its client left does not keep the next message waiting.
    """
    try:
        run = await sends.start(access, send)
    except ConversationBusyError as error:
        if not await wait_until_cancelled(str(error.extra["run_id"])):
            raise _explained(error) from None
        run = await sends.start(access, send)
    except PendingApprovalError as error:
        raise _explained(error) from None
    if context.settings.chat_disconnect != "cancel":
        return run
    for _ in range(_MAX_LEFT):
        if await wait_until_cancelled(run.id):
            run = await context.runs.by_id(access.tenant, run.id)
        if run.status is not RunStatus.CANCELLED:
            break
        # It is no answer to the client that comes back.
        key = send.idempotency_key and f"{send.idempotency_key}:{run.id}"
        again = replace(send, is_retry=False, idempotency_key=key)
        left, run = run, await sends.start(access, again)
        if run.id == left.id:  # The request continues a stream, so it starts no run.
            break
    return run


def _explained(error: ConversationBusyError | PendingApprovalError) -> ConflictError:
    """Return the error with a next step that users of a chat application can take."""
    cancel = f"POST /v1/runs/{error.extra['run_id']}/cancel"
    error.remedy = (
        f"Wait for its end, or cancel it with {cancel}. If your application stops answers by "
        "closing the connection, set REATTACH_CHAT_DISCONNECT=cancel on the server."
        if isinstance(error, ConversationBusyError)
        else f"Answer the request through another API, or cancel the call with {cancel}."
    )
    error.detail = f"{error.prefix}{error.fact} {error.remedy}"
    return error


def _client_tools(body: ChatCompletionCreate) -> tuple[ClientTool, ...]:
    """Raises ValidationFailedError."""
    if body.tool_choice == "none":
        return ()
    names: set[str] = set()
    found = []
    for number, tool in enumerate(body.tools or ()):
        function = tool.function
        place: list[str | int] = ["body", "tools", number, "function"]
        if function.name in names:
            raise invalid([Fault([*place, "name"], "Another tool has this name.", "unique")])
        names.add(function.name)
        check_schema_size(function.parameters, [*place, "parameters"])
        found.append(ClientTool(function.name, function.description, function.parameters))
    return tuple(found)


async def _whole(context: Context, run: Run) -> Response:
    """Wait for the end of the run and return the whole answer.

    Raises:
        EngineError: The run failed.
        ExpiredError: Its conversation was deleted.
        UnavailableError: The server is shutting down, or cannot store the end of the run.
    """
    run = await context.runs.wait_until_settled(run)
    if run.status.is_active and context.runs.draining:
        raise UnavailableError(
            "The server is shutting down, and the answer goes on without it.",
            remedy=_SEND_AGAIN,
            retry_after_seconds=2,
        )
    if run.status.is_active:
        raise StoreUnavailableError("The answer cannot be stored at present.", remedy=_SEND_AGAIN)
    if run.status is RunStatus.FAILED and run.error is not None:
        error = engine_error(run.error.error_type, run.error.message)
        error.extra = {"run_id": run.id}
        raise error
    sent = {message.id for message in run.input}
    kept = await context.records.messages.all_of_run(run.tenant, run.id)
    if run.status is RunStatus.COMPLETED and not kept:
        raise ExpiredError(f"The messages of {run.id} were deleted with its conversation.")
    output = [message for message in kept if message.id not in sent]
    answer = completion(facts_of(run), output, run.stop_reason, run.usage or Usage())
    return JsonResponse(answer, headers={"x-run-id": run.id, **_headers_of(run)})


def _headers_of(run: Run) -> Mapping[str, str]:
    return {} if run.conversation_id is None else {"x-conversation-id": run.conversation_id}
