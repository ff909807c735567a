"""Routes of the AI SDK. Give ``/ai-sdk/{agent_id}/chat`` to its transports as their ``api``."""

import hashlib
from typing import Annotated, Any, Final

from fastapi import Path, Query, Response

from reattach.domain.errors import (
    NoActiveRunsToCancelError,
    NotFoundError,
)
from reattach.domain.ids import AgentId, TenantId, is_run_id
from reattach.domain.limits import MAX_INTEGER
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_PAGE_ITEMS
from reattach.domain.messages import Message
from reattach.engine.base import ClientTool
from reattach.http.content import check_images
from reattach.http.context import AccessDep, Context, ContextDep
from reattach.http.dialects.ai_sdk.answers import answer_before, answer_in, is_answered_in
from reattach.http.dialects.ai_sdk.bodies import ChatBody, UiMessageState
from reattach.http.dialects.ai_sdk.bounds import require_chat, require_send
from reattach.http.dialects.ai_sdk.branches import branch_at
from reattach.http.dialects.ai_sdk.chats import (
    FAMILY,
    Chat,
    dialect_of,
    dialect_of_turn,
    find_chat,
    newest_runs,
    turn_of,
)
from reattach.http.dialects.ai_sdk.history import history
from reattach.http.dialects.ai_sdk.incoming import (
    ANSWERED,
    METADATA,
    OUTPUTS,
    earlier_messages,
    user_message,
)
from reattach.http.dialects.ai_sdk.replays import ReplaysDep
from reattach.http.dialects.sending import DialectSend, DialectSendsDep
from reattach.http.dialects.streaming import dialect_stream
from reattach.http.json import Fault, JsonResponse, invalid
from reattach.http.middleware.access import Access
from reattach.http.routes import routes
from reattach.http.schemas.fields import AgentPath
from reattach.records.base import Agent, Run, Target
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.ui_messages import UiMessages

router = routes("ai-sdk")

RUN_ID: Final = "x-workflow-run-id"
TAIL_INDEX: Final = "x-workflow-stream-tail-index"

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The message as a UI message stream, with `data: [DONE]` at the end. A body "
        "without it was cut off: get the stream of the chat.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {
            "X-Run-Id": {"description": "The run.", "schema": {"type": "string"}},
            "X-Run-Status": {"description": "Its status.", "schema": {"type": "string"}},
            "X-Stream-Starts-After": {
                "description": "The number of chunks before the first one of this body.",
                "schema": {"type": "integer"},
            },
        },
    }
}

ChatPath = Annotated[
    str, Path(min_length=1, max_length=MAX_ID_CHARS, description="The id of the chat.")
]


@router.post(
    "/ai-sdk/{agent_id}/chat",
    operation_id="ai_sdk_send",
    summary="Send a message of a chat, or the answer to a call",
    description="A message that was sent before gets the run of the first request. A last message "
    "of the assistant answers the calls that wait in it. With the trigger `regenerate-message`, or "
    "with the `messageId` of an earlier message, the chat continues from that message on in a fork "
    "of its conversation.",
    responses=_STREAM,
)
async def send(
    agent_id: AgentPath,
    body: ChatBody,
    context: ContextDep,
    access: AccessDep,
    sends: DialectSendsDep,
) -> Response:
    await require_send(access, body)
    chat = await find_chat(context, access.tenant, agent_id, body.id)
    agent = await context.records.agents.get(access.tenant, agent_id)
    if body.newest.role == "system":
        message = "The last message is of the role 'system'. Send one of a user."
        raise invalid([Fault(["body", "messages"], message, "role")])
    if body.newest.role == "assistant":
        run = await _answer(context, access, sends, chat, agent, body)
    else:
        run = await _message(context, access, sends, chat, agent, body)
    dialect = dialect_of(await turn_of(context, run))
    return dialect_stream(context, run, dialect, headers={RUN_ID: run.id})


async def _answer(
    context: Context,
    access: Access,
    sends: DialectSendsDep,
    chat: Chat,
    agent: Agent,
    body: ChatBody,
) -> Run:
    """Start the run of the answers in the assistant's message, or return that of the first ones.

    A page that was loaded again may run its tool once more. The first result stands, so answers
    have no idempotency key.
    """
    answer = await answer_in(context, chat, body.newest)
    return await sends.start(
        access,
        DialectSend(
            **_common(chat, agent, body),
            messages=[answer.message],
            payload=[answer.asked_by],
            given={OUTPUTS: answer.outputs} if answer.outputs else {},
        ),
    )


async def _message(
    context: Context,
    access: Access,
    sends: DialectSendsDep,
    chat: Chat,
    agent: Agent,
    body: ChatBody,
) -> Run:
    """Start the run of a person's message."""
    sent, now = body.newest, context.clock.now()
    message = user_message(sent, now)
    earlier = [] if chat.conversation else earlier_messages(body.earlier, now)
    to_private = context.settings.callbacks_to_private
    check_images((*earlier, message), to_private=to_private)
    kind, opening, replaced = "submit", None, None
    messages: list[Message] = [message]
    given: dict[str, Any] = {} if sent.metadata is None else {METADATA: sent.metadata}
    if body.trigger == "regenerate-message" or body.message_id == sent.id:
        edits = body.trigger == "submit-message"
        branch = await branch_at(context, chat, agent, sent.id, message, edits=edits)
        if branch.is_repeated and branch.replaced is not None:
            return branch.replaced
        opening, replaced = branch.opening, branch.replaced
        kind = f"again-{replaced.id if replaced else ''}"
    elif chat.conversation is not None and body.earlier:
        newest = (await newest_runs(context, chat))[:1]
        if newest and is_answered_in(newest[0], sent.id, message):
            return newest[0]
        answer = await answer_before(context, newest, body.earlier[-1], now)
        if answer is not None:
            kind, messages = ANSWERED, [answer.message, message]
            given |= {OUTPUTS: answer.outputs} if answer.outputs else {}
    run = await sends.start(
        access,
        DialectSend(
            **_common(chat, agent, body),
            messages=messages,
            payload=[kind, sent.id],
            opening=opening,
            earlier=earlier,
            idempotency_key=_request_key(kind, chat, sent.id),
            key_name="message id",
            given=given,
        ),
    )
    if opening is not None and replaced is not None and replaced.status.is_active:
        await context.runs.cancel([replaced], by=access.actor)  # Nobody will see its answer.
    return run


def _common(chat: Chat, agent: Agent, body: ChatBody) -> dict[str, Any]:
    return {
        "dialect": FAMILY,
        "agent": agent,
        # The key finds it otherwise, as it did for an equal request that began the conversation.
        "conversation": chat.conversation if chat.is_named_by_conversation else None,
        "key": chat.id,
        "client_tools": tuple(
            ClientTool(name, tool.description, tool.parameters) for name, tool in body.tools.items()
        ),
        "system_suffix": body.system,
    }


def _request_key(kind: str, chat: Chat, request_id: str) -> str:
    """Return the idempotency key, which ends with the client's id of the message."""
    name = hashlib.sha256(f"{chat.agent_id} {chat.id}".encode()).hexdigest()[:16]
    return f"{kind}:{name}:{request_id}"


@router.get(
    "/ai-sdk/{agent_id}/chat/{chat_id}/stream",
    operation_id="ai_sdk_resume",
    summary="Get the stream of the message that is being produced",
    description="The whole message, from its `start` on. 204 if nothing is being produced. A "
    "message that was finished within the last hour is sent once more if nobody has listed it "
    "since, because the client may have lost its end. With `startIndex`, or with the id of a run "
    "instead of a chat, the run may have ended at any time.",
    responses={**_STREAM, 204: {"description": "No run of the chat is active."}},
)
async def resume(
    agent_id: AgentPath,
    chat_id: ChatPath,
    context: ContextDep,
    access: AccessDep,
    replays: ReplaysDep,
    start_index: Annotated[
        int | None,
        Query(
            alias="startIndex",
            ge=-MAX_INTEGER,
            le=MAX_INTEGER - 1,
            description="The number of chunks received; if negative, counted from the last one.",
        ),
    ] = None,
) -> Response:
    await require_chat(access, chat_id)
    tenant = access.tenant
    if is_run_id(chat_id):
        run = await _run_of(context, tenant, agent_id, chat_id)
        dialect = dialect_of(await turn_of(context, run))
        return await _stream(context, run, dialect, start_index or 0)
    chat = await find_chat(context, tenant, agent_id, chat_id)
    newest = await newest_runs(context, chat)
    if not newest and start_index is not None:
        raise NotFoundError(f"The chat '{chat_id}' has no run.")
    if not newest or (start_index is None and not replays.is_due(newest[0], context.clock.now())):
        return Response(status_code=204)
    dialect = await dialect_of_turn(context, await turn_of(context, newest[0]))
    return await _stream(context, newest[0], dialect, start_index or 0)


async def _stream(context: Context, run: Run, dialect: UiMessages, start_index: int) -> Response:
    headers: dict[str, str] = {RUN_ID: run.id}
    if start_index < 0:
        following = await context.translations.follow(Target.of(run), dialect, facts_of(run), 0)
        async with following:
            count = following.last_seq
        headers[TAIL_INDEX] = str(count - 1)
        start_index = max(count + start_index, 0)
    return dialect_stream(context, run, dialect, cursor=start_index, headers=headers, resumes=True)


@router.get(
    "/ai-sdk/{agent_id}/chat/{chat_id}/messages",
    operation_id="ai_sdk_list_messages",
    summary="List the messages of a chat as UI messages",
    description="The newest ones, oldest first, for `messages` of `useChat`. The message that is "
    "being produced is left out: the stream has all of it. A chat to which nothing was sent has "
    "none.",
)
async def list_messages(
    agent_id: AgentPath,
    chat_id: ChatPath,
    context: ContextDep,
    access: AccessDep,
    replays: ReplaysDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS)] = 200,
    before: Annotated[
        str | None,
        Query(max_length=MAX_ID_CHARS, description="Only messages older than the one of this id."),
    ] = None,
) -> list[UiMessageState]:
    await require_chat(access, chat_id)
    tenant = access.tenant
    chat = await find_chat(context, tenant, agent_id, chat_id)
    if chat.thread is None:
        return []
    newest = await newest_runs(context, chat)
    found = await history(context, tenant, chat.thread, limit=limit, before=before)
    for run in newest:
        replays.note_listed(run)
    return JsonResponse(found)  # type: ignore[return-value]  # absent members stay absent


@router.post(
    "/ai-sdk/{agent_id}/chat/{chat_id}/stop",
    operation_id="ai_sdk_stop",
    summary="Stop the message that is being produced",
    description="Reads no body. Returns the resulting status, by the id of the run; nothing if no "
    "run is active. Calls that wait for an approval are cancelled.",
    response_model=dict[str, str],
)
async def stop(
    agent_id: AgentPath, chat_id: ChatPath, context: ContextDep, access: AccessDep
) -> Response:
    return await _stop(context, access, agent_id, chat_id)


@router.delete(
    "/ai-sdk/{agent_id}/chat/{chat_id}/stream",
    operation_id="ai_sdk_cancel_stream",
    summary="Stop the message that is being produced",
    description="The same as a POST to `stop`.",
    response_model=dict[str, str],
)
async def cancel_stream(
    agent_id: AgentPath, chat_id: ChatPath, context: ContextDep, access: AccessDep
) -> Response:
    return await _stop(context, access, agent_id, chat_id)


async def _run_of(context: Context, tenant: TenantId, agent_id: AgentId, run_id: str) -> Run:
    """Return a run of the agent. Raises NotFoundError."""
    run = await context.runs.by_id(tenant, run_id)
    if run.thread.agent_id != agent_id:
        raise NotFoundError(f"{run_id} is not a run of {agent_id}.")
    return run


async def _stop(context: Context, access: Access, agent_id: AgentId, chat_id: str) -> Response:
    await require_chat(access, chat_id)
    if is_run_id(chat_id):
        run = await _run_of(context, access.tenant, agent_id, chat_id)
        return JsonResponse(await context.runs.cancel([run], by=access.actor))
    chat = await find_chat(context, access.tenant, agent_id, chat_id)
    if chat.thread is None:
        raise NotFoundError(
            f"Nothing was sent to the chat '{chat_id}'.", remedy="Check the id of the chat."
        )
    try:
        done = await context.runs.cancel_thread(access.tenant, chat.thread, by=access.actor)
    except NoActiveRunsToCancelError:
        done = {}  # It has just ended.
    return JsonResponse(done)
