"""The threads of clients, and their messages as the server has them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from reattach.domain.errors import NotFoundError
from reattach.domain.events import RunStatus
from reattach.domain.ids import (
    DIALECT_OTID,
    AgentId,
    ConversationId,
    TenantId,
    is_conversation_id,
)
from reattach.domain.messages import Message, ToolReturnPart
from reattach.http.context import Context
from reattach.http.dialects.ag_ui.input import IDS
from reattach.records.base import Conversation, Page, Run, Span, Thread
from reattach.records.records import Records
from reattach.records.runs.openings import ConversationKey
from reattach.runs.translation.facts import facts_of
from reattach.wire.dialects.ag_ui import DENIED
from reattach.wire.dialects.ag_ui_messages import history, interrupt

FAMILY: Final = "ag-ui"

MAX_SHOWN: Final = 1000
"""The newest messages of a conversation that a client gets, and the runs whose names it has."""

_NEWEST: Final = Page(limit=1, ascending=False)
_LAST_RUNS: Final = Page(limit=10, ascending=False)
_FIRST: Final = Span(limit=1, ascending=True)
_RUNS: Final = Page(limit=MAX_SHOWN, ascending=False)
_MESSAGES: Final = Span(limit=MAX_SHOWN, ascending=False)


@dataclass(frozen=True, slots=True)
class ClientThread:
    """A thread by its client's name, and its conversation once the server has it."""

    agent_id: AgentId
    name: str
    conversation: Conversation | None
    is_id: bool = False
    """Whether the name is the id of the conversation."""

    @property
    def thread(self) -> Thread:
        assert self.conversation is not None
        return Thread(self.agent_id, self.conversation.id)

    def request_key(self, run_id: str) -> str:
        """Return the idempotency key of the client's run in this thread."""
        names = msgspec.json.encode([self.agent_id, self.name, run_id])
        return hashlib.sha256(names).hexdigest()[:40]


async def find_thread(
    records: Records, tenant: TenantId, agent_id: AgentId, name: str
) -> ClientThread:
    """Return the thread. The id of a conversation of the agent is a name of it too.

    Raises:
        NotFoundError: The name is such an id, and the agent has no conversation with it.
    """
    key = ConversationKey(agent_id, FAMILY, name)
    conversation_id = await records.conversation_keys.find(tenant, key)
    if conversation_id is None and is_conversation_id(name):
        named = await records.conversations.get(tenant, ConversationId(name))
        if named.agent_id != agent_id:
            raise NotFoundError(
                f"{name} is not a conversation of {agent_id}.",
                remedy="Choose another threadId to begin a thread.",
            )
        return ClientThread(agent_id, name, named, is_id=True)
    conversation = None
    if conversation_id is not None:
        try:
            conversation = await records.conversations.get(tenant, conversation_id)
        except NotFoundError:  # It was deleted.
            conversation = None
    return ClientThread(agent_id, name, conversation)


async def known_run(
    context: Context, tenant: TenantId, thread: ClientThread, run_id: str
) -> Run | None:
    """Return the run that the client names; None if it has not begun."""
    otid = f"{DIALECT_OTID}{FAMILY}:{thread.request_key(run_id)}"
    try:
        return await context.runs.by_otid(tenant, otid)
    except NotFoundError:
        return None


async def newest_run(records: Records, tenant: TenantId, thread: ClientThread) -> Run | None:
    if thread.conversation is None:
        return None
    runs = await records.runs.list(tenant, _NEWEST, conversation_id=thread.conversation.id)
    return runs[0] if runs else None


async def newest_kept(records: Records, tenant: TenantId, thread: ClientThread) -> Run | None:
    """Return the newest run whose messages the conversation keeps.

    A run that failed before the model produced anything leaves no message there.
    """
    if thread.conversation is None:
        return None
    for run in await records.runs.list(tenant, _LAST_RUNS, conversation_id=thread.conversation.id):
        is_kept = run.status in {RunStatus.COMPLETED, RunStatus.RUNNING, RunStatus.CREATED}
        if is_kept or await records.messages.of_run(tenant, run.id, _FIRST):
            return run
    return None


async def history_of(
    records: Records, tenant: TenantId, thread: ClientThread, before: Run | None = None
) -> list[dict[str, Any]]:
    """Return the newest messages of a thread; with ``before`` those that this run began with.

    A run may be left of a thread whose conversation was deleted, with its messages.
    """
    if thread.conversation is None:
        return history([] if before is None else _sent(before), {})
    listed = await records.messages.list(tenant, thread.thread, _MESSAGES, system_too=False)
    messages: Sequence[Message] = listed[::-1]
    if before is not None:
        places = [n for n, one in enumerate(messages) if one.run_id == before.id]
        messages = [*messages[: places[0] if places else None], *_sent(before)]
    named = thread.thread.conversation_id
    runs = await records.runs.list(tenant, _RUNS, conversation_id=ConversationId(named or ""))
    ids: dict[str, str] = {}
    for run in runs:
        ids |= facts_of(run).given.get(IDS, {})
    return history(messages, ids)


def _sent(run: Run) -> list[Message]:
    """Return the input of a run without the results that its events have."""
    denied = facts_of(run).given.get(DENIED) or {}
    sent: list[Message] = []
    for message in run.input:
        parts = tuple(
            part
            for part in message.parts
            if not (isinstance(part, ToolReturnPart) and part.tool_call_id in denied)
        )
        sent.append(msgspec.structs.replace(message, parts=parts))
    return sent


async def interrupts_of(
    records: Records, tenant: TenantId, thread: ClientThread, newest: Run | None
) -> list[dict[str, Any]]:
    """Return the questions that the thread waits for."""
    pending = await records.messages.pending(tenant, thread.thread)
    if pending is None:
        return []
    by_client = frozenset() if newest is None else facts_of(newest).client_tools
    return [
        interrupt(call.tool_call_id, call.name)
        for call in pending.waiting
        if call.name not in by_client
    ]
