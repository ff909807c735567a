"""Answers that are produced again, and messages that are edited.

Both replace the rest of a chat from a person's message on. The chat then continues in a fork of its
conversation, which has everything before that message; the conversation itself stays as it was.
"""

from dataclasses import dataclass

from reattach.agent.turns import system_prompt
from reattach.domain.errors import InvalidArgumentError
from reattach.domain.events import RunStatus
from reattach.domain.limits.requests import MAX_PAGE_ITEMS
from reattach.domain.messages import Message, Role
from reattach.domain.prompt import system_message
from reattach.http.context import Context
from reattach.http.dialects.ai_sdk.chats import Chat, newest_runs
from reattach.http.dialects.ai_sdk.incoming import OTID, shown_id
from reattach.records.base import Agent, Run, Span
from reattach.records.conversations import fork_of
from reattach.records.runs.openings import Opening


@dataclass(frozen=True, slots=True)
class Branch:
    """The rest of a chat that a message replaces."""

    replaced: Run | None
    """The newest run; it is what makes two requests different."""
    opening: Opening | None
    """The fork; None: the conversation has nothing to replace."""
    is_repeated: bool
    """Whether ``replaced`` is the run of the same request."""


async def branch_at(
    context: Context, chat: Chat, agent: Agent, message_id: str, sent: Message, *, edits: bool
) -> Branch:
    """Return how a chat continues when the message ``message_id`` and all after it are replaced.

    ``edits`` is false if only another answer to the same message is wanted.

    Raises:
        InvalidArgumentError: The chat is named by its conversation, so it cannot move to a fork.
    """
    newest = await newest_runs(context, chat)
    replaced = newest[0] if newest else None
    if chat.conversation is None or chat.thread is None:
        return Branch(replaced, None, is_repeated=False)
    if replaced is not None and _is_same(replaced, message_id, sent, edits=edits):
        return Branch(replaced, None, is_repeated=True)
    before, found = await _before(context, chat, message_id)
    if not found and not (replaced is not None and _has(replaced, message_id)):
        return Branch(replaced, None, is_repeated=False)
    if not found and (replaced is None or not replaced.status.is_active):
        return Branch(replaced, None, is_repeated=False)  # The conversation kept nothing of it.
    if chat.is_named_by_conversation:
        raise InvalidArgumentError(
            "A chat whose id is that of a conversation cannot go back to an earlier message, "
            "because its conversation keeps all messages.",
            remedy="Send a new message, or use a chat id of your own.",
        )
    now = context.clock.now()
    fork = fork_of(agent, chat.conversation, now, hidden=bool(chat.conversation.hidden))
    first = system_message(system_prompt(agent, fork), now)
    opening = Opening(
        fork,
        first,
        chat.key,
        source=None if before is None else chat.thread,
        up_to=None if before is None else before.id,
        replaces=chat.conversation.id,
    )
    return Branch(replaced, opening, is_repeated=False)


async def _before(context: Context, chat: Chat, message_id: str) -> tuple[Message | None, bool]:
    """Return the last stored message before ``message_id``, and whether that one is stored.

    If it is not stored, its run is active, and all stored messages come before it.
    """
    assert chat.thread is not None
    last: Message | None = None
    oldest = None
    has_passed = False
    while True:
        span = Span(MAX_PAGE_ITEMS, ascending=False, before=oldest)
        page = await context.records.messages.list(chat.tenant, chat.thread, span, system_too=False)
        for message in page:
            if has_passed:
                return message, True
            last = last or message
            has_passed = message.role is Role.USER and shown_id(message) == message_id
        if not page:
            return (None, True) if has_passed else (last, False)
        oldest = page[-1].id


def _has(run: Run, message_id: str) -> bool:
    return any(shown_id(message) == message_id for message in run.input)


def _is_same(run: Run, message_id: str, sent: Message, *, edits: bool) -> bool:
    """Return whether the run was started by the same request.

    A chat names the message as edited also when it sends the last one again, unchanged. A run that
    ended without an answer is not what it wants then.
    """
    begun = [
        message
        for message in run.input
        if shown_id(message) == message_id and message.parts == sent.parts
    ]
    if edits:
        return bool(begun) and (run.status.is_active or run.status is RunStatus.COMPLETED)
    replaces = any((message.otid or "").startswith(f"{OTID}again-") for message in begun)
    return run.status.is_active and replaces
