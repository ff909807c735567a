"""Routes for conversations."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Literal

from fastapi import Query

from reattach.agent.turns import system_prompt
from reattach.domain.errors import InvalidArgumentError
from reattach.domain.ids import (
    AGENT_PATTERN,
    MESSAGE_PATTERN,
    AgentId,
    MessageId,
    TenantId,
)
from reattach.domain.prompt import system_message
from reattach.http.api.models import check_model
from reattach.http.context import AccessDep, Context, ContextDep, TenantDep
from reattach.http.paging import ShortPage
from reattach.http.parse_send import find_addressed
from reattach.http.readable import readable_items
from reattach.http.routes import routes
from reattach.http.schemas.conversation import (
    ConversationCreate,
    ConversationState,
    ConversationUpdate,
)
from reattach.http.schemas.fields import ConversationPath, QueryAgent, QueryPart, ThreadPath
from reattach.records.base import Agent, Block, Conversation, Thread
from reattach.records.conversations import copies, fork_of

router = routes("conversations")


@router.post(
    "/v1/conversations/", operation_id="create_conversation", summary="Create a conversation"
)
async def create_conversation(
    agent_id: Annotated[AgentId, Query(pattern=AGENT_PATTERN, description="Id of its agent.")],
    context: ContextDep,
    tenant: TenantDep,
    body: ConversationCreate | None = None,
) -> ConversationState:
    body = body or ConversationCreate()
    now = context.clock.now()
    conversation = body.conversation(agent_id, now)
    agent = await context.records.agents.get(tenant, conversation.agent_id)
    check_model(context.catalog, conversation.model)
    isolated = _isolate_blocks(agent, body.isolated_block_labels or (), now)
    conversation = replace(conversation, isolated_blocks=isolated)
    first = system_message(system_prompt(agent, conversation), now)
    conversation = await context.records.conversations.create(tenant, conversation, first)
    return ConversationState.of(conversation, [first.id])


@router.get("/v1/conversations/", operation_id="list_conversations", summary="List conversations")
async def list_conversations(
    context: ContextDep,
    tenant: TenantDep,
    page: ShortPage,
    agent_id: QueryAgent = None,
    summary_search: QueryPart = None,
    order_by: Literal["created_at", "last_run_completion", "last_message_at"] = "created_at",
    archive_status: Literal["unarchived", "archived", "all"] = "unarchived",
) -> list[ConversationState]:
    """List conversations, except hidden ones."""
    records = context.records.conversations
    conversations = await records.list(
        tenant,
        page,
        agent_id=agent_id,
        summary_search=summary_search,
        order_by=order_by,
        archive_status=archive_status,
    )
    message_ids = await records.message_ids_of(tenant, conversations)
    return await readable_items(
        "conversations", conversations, lambda one: ConversationState.of(one, message_ids[one.id])
    )


@router.get(
    "/v1/conversations/{conversation_id}",
    operation_id="retrieve_conversation",
    summary="Retrieve a conversation",
)
async def retrieve_conversation(
    conversation_id: ConversationPath, context: ContextDep, tenant: TenantDep
) -> ConversationState:
    found = await context.records.conversations.with_message_ids(tenant, conversation_id)
    return ConversationState.of(*found)


@router.patch(
    "/v1/conversations/{conversation_id}",
    operation_id="update_conversation",
    summary="Change a conversation",
)
async def update_conversation(
    conversation_id: ConversationPath,
    body: ConversationUpdate,
    context: ContextDep,
    tenant: TenantDep,
) -> ConversationState:
    check_model(context.catalog, body.model)
    conversation = await context.records.conversations.update(
        tenant, conversation_id, partial(body.apply, now=context.clock.now())
    )
    return await _state(context, tenant, conversation)


@router.delete(
    "/v1/conversations/{conversation_id}",
    operation_id="delete_conversation",
    summary="Delete a conversation",
    description="An active run in it continues to its end, and can be resumed and cancelled by "
    "its id. Stream tokens for the conversation and its runs are revoked.",
)
async def delete_conversation(
    conversation_id: ConversationPath, context: ContextDep, access: AccessDep
) -> None:
    await context.records.conversations.delete(access.tenant, conversation_id, by=access.actor)


@router.post(
    "/v1/conversations/{conversation_id}/fork",
    operation_id="fork_conversation",
    summary="Copy a conversation's messages into a new conversation",
)
async def fork_conversation(
    conversation_id: ThreadPath,
    context: ContextDep,
    tenant: TenantDep,
    agent_id: QueryAgent = None,
    message_id: Annotated[
        MessageId | None,
        Query(pattern=MESSAGE_PATTERN, description="Id of the last message to copy."),
    ] = None,
    hidden: bool = False,
) -> ConversationState:
    addressed = await find_addressed(context.records, tenant, conversation_id, agent_id)
    source = addressed.thread
    now = context.clock.now()
    new = fork_of(addressed.agent, addressed.conversation, now, hidden=hidden)
    first = system_message(system_prompt(addressed.agent, new), now)
    new = await context.records.conversations.fork(tenant, source, new, first, up_to=message_id)
    return await _state(context, tenant, new)


def _isolate_blocks(agent: Agent, labels: Sequence[str], now: datetime) -> tuple[Block, ...]:
    """Return copies of the agent's blocks with these labels. Raises InvalidArgumentError."""
    by_label = {block.label: block for block in agent.blocks}
    if missing := [label for label in labels if label not in by_label]:
        known = ", ".join(sorted(repr(label) for label in by_label if label is not None))
        raise InvalidArgumentError(
            f"{agent.id} has no block with the label {missing[0][:100]!r} to isolate.",
            remedy=f"Use labels of its blocks: {known}."
            if known
            else "It has no blocks. Attach one first, or leave out 'isolated_block_labels'.",
        )
    return copies([by_label[label] for label in dict.fromkeys(labels)], now)


async def _state(
    context: Context, tenant: TenantId, conversation: Conversation
) -> ConversationState:
    thread = Thread(conversation.agent_id, conversation.id)
    message_ids = await context.records.conversations.message_ids(tenant, thread)
    return ConversationState.of(conversation, message_ids)
