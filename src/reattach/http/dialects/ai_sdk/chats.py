"""Chats: conversations that clients name, and the turns in them.

A turn is what clients show as one message: a run, and the runs that continue it with an answer.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reattach.domain.errors import ExpiredError, NotFoundError
from reattach.domain.events import StopReason
from reattach.domain.ids import AgentId, ConversationId, TenantId, is_conversation_id
from reattach.domain.messages import (
    ApprovalPart,
    Message,
    Role,
    ToolCallPart,
)
from reattach.http.context import Context
from reattach.http.dialects.ai_sdk.history import returned_by_client, stored_frames
from reattach.records.base import Conversation, Page, Run, Target, Thread
from reattach.records.runs.openings import ConversationKey
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.ui_messages import UiMessages, chunk_frame
from reattach.wire.sse import split_frames

FAMILY: Final = "ai-sdk"
"""The word for this dialect in keys and records."""

MAX_TURN_RUNS: Final = 100
"""The runs of one turn that are looked at."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A client's chat with an agent."""

    tenant: TenantId
    agent_id: AgentId
    id: str
    conversation: Conversation | None
    """None: nothing was sent to it yet."""

    @property
    def key(self) -> ConversationKey:
        return ConversationKey(self.agent_id, FAMILY, self.id)

    @property
    def is_named_by_conversation(self) -> bool:
        """Whether its id is that of the conversation, which any client may have begun."""
        return is_conversation_id(self.id)

    @property
    def thread(self) -> Thread | None:
        if self.conversation is None:
            return None
        return Thread(self.agent_id, self.conversation.id)


async def find_chat(context: Context, tenant: TenantId, agent_id: AgentId, chat_id: str) -> Chat:
    """Return the chat, also if nothing was sent to it yet.

    Raises:
        NotFoundError: There is no such agent, or no conversation with this id.
    """
    records = context.records
    if is_conversation_id(chat_id):
        conversation = await records.conversations.get(tenant, ConversationId(chat_id))
        if conversation.agent_id != agent_id:
            raise NotFoundError(f"{chat_id} is not a conversation of {agent_id}.")
        return Chat(tenant, agent_id, chat_id, conversation)
    key = ConversationKey(agent_id, FAMILY, chat_id)
    found = await records.conversation_keys.find(tenant, key)
    if found is None:
        await records.agents.get(tenant, agent_id)
        return Chat(tenant, agent_id, chat_id, None)
    try:
        conversation = await records.conversations.get(tenant, found)
    except NotFoundError:  # It was deleted meanwhile.
        return Chat(tenant, agent_id, chat_id, None)
    return Chat(tenant, agent_id, chat_id, conversation)


async def newest_runs(context: Context, chat: Chat, limit: int = 1) -> list[Run]:
    """Return the newest runs of the chat, the newest first."""
    if chat.conversation is None:
        return []
    page = Page(limit=limit, ascending=False)
    return await context.records.runs.list(chat.tenant, page, conversation_id=chat.conversation.id)


def continues(run: Run) -> bool:
    """Return whether the run only answers the run before it."""
    return all(message.role in {Role.APPROVAL, Role.TOOL} for message in run.input)


async def turn_of(context: Context, run: Run) -> list[Run]:
    """Return the runs of a run's turn up to it, the oldest first."""
    turn = [run]
    conversation_id = run.thread.conversation_id
    if not continues(run) or conversation_id is None:
        return turn
    page = Page(limit=MAX_TURN_RUNS, ascending=False, after=run.id)
    for earlier in await context.records.runs.list(
        run.tenant, page, conversation_id=conversation_id
    ):
        if earlier.stop_reason is not StopReason.REQUIRES_APPROVAL:
            continue  # It failed before it asked for anything, so this run answers an older one.
        turn.append(earlier)
        if not continues(earlier):
            break
    return turn[::-1]


async def waiting_calls(context: Context, run: Run) -> list[ToolCallPart]:
    """Return the calls for which a run ended, whether they were answered since or not."""
    if run.stop_reason is not StopReason.REQUIRES_APPROVAL:
        return []
    messages = await context.records.messages.all_of_run(run.tenant, run.id)
    return [
        part
        for message in messages
        if message.role is Role.ASSISTANT
        for part in message.parts
        if isinstance(part, ToolCallPart) and part.needs_approval
    ]


def dialect_of(turn: Sequence[Run]) -> UiMessages:
    """Return the form of the newest run of a turn, for a client that has the rest."""
    if len(turn) == 1 and not continues(turn[-1]):
        return UiMessages()
    return UiMessages(first_run_id=turn[0].id, denied=denied_calls(turn[-1].input))


async def dialect_of_turn(context: Context, turn: Sequence[Run]) -> UiMessages:
    """Return the form of a turn as one stream, for a client that has nothing of it."""
    own = dialect_of(turn)
    if len(turn) == 1:
        return own
    before: list[bytes] = []
    for number in range(len(turn) - 1):
        frames = await _frames(context, turn[: number + 1])
        before += frames[:-1] if number == 0 else frames[1:-1]  # Without the start and the finish.
        before += [chunk_frame(chunk) for chunk in returned_by_client(turn[number + 1])]
    return UiMessages(first_run_id=turn[0].id, denied=denied_calls(turn[-1].input), before=before)


async def _frames(context: Context, turn: Sequence[Run]) -> list[bytes]:
    """Return all frames of the newest run of a turn, which has ended."""
    run, dialect = turn[-1], dialect_of(turn)
    frames: list[bytes] = []
    try:
        following = await context.translations.follow(Target.of(run), dialect, facts_of(run), 0)
    except ExpiredError:  # The messages are kept longer than the events.
        return await stored_frames(context, run, dialect)
    async with following:
        while True:
            changed = asyncio.Event()
            following.wake = changed.set
            piece = await following.read()
            frames += split_frames(piece.frames)
            if following.finished:
                return frames
            if not piece.frames:
                await changed.wait()


def denied_calls(sent: Sequence[Message]) -> list[str]:
    """Return the ids of the calls that the messages deny."""
    return [
        part.tool_call_id
        for message in sent
        if message.role is Role.APPROVAL
        for part in message.parts
        if isinstance(part, ApprovalPart) and not part.approve
    ]
