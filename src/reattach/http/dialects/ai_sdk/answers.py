"""Answers to the calls for which a chat waits, in the messages that clients send."""

from collections.abc import Sequence
from datetime import datetime

from reattach.domain.errors import NoPendingApprovalError
from reattach.domain.messages import Message, Role
from reattach.http.context import Context
from reattach.http.dialects.ai_sdk.bodies import UiMessageBody
from reattach.http.dialects.ai_sdk.chats import (
    MAX_TURN_RUNS,
    Chat,
    continues,
    newest_runs,
    waiting_calls,
)
from reattach.http.dialects.ai_sdk.incoming import (
    ANSWERED,
    OTID,
    Answer,
    answer_of,
    decided_ids,
    shown_id,
)
from reattach.records.base import Run


async def answer_in(context: Context, chat: Chat, sent: UiMessageBody) -> Answer:
    """Return the answer in the last message of a request, which is the assistant's.

    It is the answer to the newest run of the turn whose calls have one, also if that run got it
    before: the request may be repeated.

    Raises:
        InvalidArgumentError: A waiting call has no answer.
        NoPendingApprovalError: No call of the message waits or has waited.
    """
    decided = decided_ids(sent)
    runs = await newest_runs(context, chat, limit=MAX_TURN_RUNS)
    for run in runs:
        waiting = await waiting_calls(context, run)
        is_newest = run.id == runs[0].id
        if waiting and (is_newest or any(call.tool_call_id in decided for call in waiting)):
            return answer_of(sent, waiting, run.id, context.clock.now())
        if not continues(run):
            break
    # The run that asked may be deleted, or of the conversation that this one is a fork of.
    pending = None
    if chat.thread is not None:
        pending = await context.records.messages.pending(chat.tenant, chat.thread)
    if pending is None:
        raise NoPendingApprovalError
    return answer_of(sent, pending.waiting, pending.request.id, context.clock.now())


async def answer_before(
    context: Context, newest: Sequence[Run], before: UiMessageBody, now: datetime
) -> Answer | None:
    """Return the answer in the message before a new one of a person.

    Some clients settle all calls when a person writes on instead of answering. None if the chat
    waits for nothing, or if a call has no answer.
    """
    if not newest or before.role != "assistant":
        return None
    waiting = await waiting_calls(context, newest[0])
    decided = decided_ids(before)
    if not waiting or any(call.tool_call_id not in decided for call in waiting):
        return None
    return answer_of(before, waiting, newest[0].id, now)


def is_answered_in(run: Run, message_id: str, sent: Message) -> bool:
    """Return whether a run was started by the message together with an answer."""
    return any(
        message.role is Role.USER
        and (message.otid or "").startswith(f"{OTID}{ANSWERED}:")
        and shown_id(message) == message_id
        and message.parts == sent.parts
        for message in run.input
    )
