"""Routes of OpenAI's Conversations API."""

from typing import Annotated

from fastapi import Path, Query, Request

from reattach.agent.turns import system_prompt
from reattach.domain.errors import InvalidArgumentError, NotFoundError, OtidConflictError
from reattach.domain.ids import ConversationId, TenantId, new_conversation_id
from reattach.domain.limits.requests import MAX_ID_CHARS
from reattach.domain.prompt import system_message
from reattach.http.content import check_images
from reattach.http.context import AccessDep, Context, ContextDep, TenantDep
from reattach.http.dialects.openai.agents import agent_of
from reattach.http.dialects.openai.errors import OpenAIErrorBody
from reattach.http.dialects.openai.items import Item, items_of, listed, thread_items
from reattach.http.dialects.openai.response_bodies import (
    ConversationCreate,
    ConversationObject,
    DeletedConversation,
    ItemList,
    ItemsCreate,
)
from reattach.http.dialects.openai.response_input import earlier_messages
from reattach.http.dialects.sending import (
    IDEMPOTENCY_KEY,
    explained,
    idempotency_key_of,
    is_retry,
    request_digest,
)
from reattach.http.json import Fault, invalid
from reattach.http.routes import routes
from reattach.http.schemas.fields import OrderParam
from reattach.records.base import Agent, Conversation, Page, Thread

router = routes("openai", error=OpenAIErrorBody)

_AGENT = "agent_id"
_TWO = Page(limit=2, ascending=True)

ConversationPath = Annotated[
    str, Path(max_length=MAX_ID_CHARS, description="Id of the conversation, `conv-<uuid4>`.")
]


@router.post(
    "/openai/v1/conversations",
    operation_id="openai_create_conversation",
    summary="Create a conversation",
    description="A conversation belongs to an agent: the only one, or that of `metadata.agent_id`.",
)
async def create_conversation(
    context: ContextDep, tenant: TenantDep, body: ConversationCreate | None = None
) -> ConversationObject:
    body = body or ConversationCreate()
    agent = await _agent_of(context, tenant, body)
    now = context.clock.now()
    conversation = Conversation(
        ConversationId(new_conversation_id()), agent.id, created_at=now, updated_at=now
    )
    first = system_message(system_prompt(agent, conversation), now)
    messages = earlier_messages(body.items or (), now)
    check_images(messages, to_private=context.settings.callbacks_to_private)
    await context.records.conversations.create(tenant, conversation, first, messages)
    return _object(conversation)


@router.get(
    "/openai/v1/conversations/{conversation_id}",
    operation_id="openai_retrieve_conversation",
    summary="Retrieve a conversation",
)
async def retrieve_conversation(
    conversation_id: ConversationPath, context: ContextDep, tenant: TenantDep
) -> ConversationObject:
    return _object(await _found(context, tenant, conversation_id))


@router.delete(
    "/openai/v1/conversations/{conversation_id}",
    operation_id="openai_delete_conversation",
    summary="Delete a conversation",
)
async def delete_conversation(
    conversation_id: ConversationPath, context: ContextDep, access: AccessDep
) -> DeletedConversation:
    found = await _found(context, access.tenant, conversation_id)
    await context.records.conversations.delete(access.tenant, found.id, by=access.actor)
    return DeletedConversation(id=found.id)


@router.get(
    "/openai/v1/conversations/{conversation_id}/items",
    operation_id="openai_list_conversation_items",
    summary="List the items of a conversation",
)
async def list_items(
    conversation_id: ConversationPath,
    context: ContextDep,
    tenant: TenantDep,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: OrderParam = "desc",
) -> ItemList:
    thread = _thread(await _found(context, tenant, conversation_id))
    found: list[Item] = []
    is_reached = after is None
    async for item in thread_items(context.records, tenant, thread, ascending=order == "asc"):
        if is_reached:
            found.append(item)
        is_reached = is_reached or item["id"] == after
        if len(found) > limit:
            break
    if not is_reached:
        raise NotFoundError(f"Item not found with id={after}")
    return listed(found[:limit], has_more=len(found) > limit)


@router.post(
    "/openai/v1/conversations/{conversation_id}/items",
    operation_id="openai_create_conversation_items",
    summary="Append items to a conversation",
    description="All or none of them. While a run is active, or a call waits for an approval, "
    "that is 409. A request that is sent again with the same `Idempotency-Key` appends nothing.",
)
async def create_items(
    request: Request,
    conversation_id: ConversationPath,
    body: ItemsCreate,
    context: ContextDep,
    tenant: TenantDep,
) -> ItemList:
    thread = _thread(await _found(context, tenant, conversation_id))
    key, now = idempotency_key_of(request), context.clock.now()
    content = [thread.key, key or body.model_dump(mode="json", exclude_unset=True)]
    digest = request_digest(
        "openai-items", content, now, is_retry=is_retry(request), has_key=key is not None
    )
    messages = earlier_messages(body.items, now)
    check_images(messages, to_private=context.settings.callbacks_to_private)
    try:
        added = await context.records.messages.add(tenant, thread, messages, digest)
    except OtidConflictError as error:
        raise explained(error, IDEMPOTENCY_KEY) from None
    return listed(items_of(added), has_more=False)


@router.get(
    "/openai/v1/conversations/{conversation_id}/items/{item_id}",
    operation_id="openai_retrieve_conversation_item",
    summary="Retrieve an item of a conversation",
    response_model=dict[str, object],
)
async def retrieve_item(
    conversation_id: ConversationPath,
    item_id: Annotated[str, Path(max_length=MAX_ID_CHARS)],
    context: ContextDep,
    tenant: TenantDep,
) -> Item:
    thread = _thread(await _found(context, tenant, conversation_id))
    async for item in thread_items(context.records, tenant, thread, ascending=False):
        if item["id"] == item_id:
            return item
    raise NotFoundError(f"Item not found with id={item_id}")


async def _agent_of(context: Context, tenant: TenantId, body: ConversationCreate) -> Agent:
    """Return the agent of a new conversation.

    Raises:
        InvalidArgumentError: The request does not say which of several agents.
        NotFoundError: There is none.
    """
    metadata = body.metadata or {}
    if unknown := sorted(set(metadata) - {_AGENT}):
        raise InvalidArgumentError(
            f"The metadata of a conversation cannot keep '{unknown[0][:100]}'.",
            remedy=f"Send only '{_AGENT}' in it.",
        )
    if _AGENT in metadata:
        name = metadata[_AGENT]
        if not isinstance(name, str):
            fault = Fault(["body", "metadata", _AGENT], "Expected a string.", "string_type")
            raise invalid([fault])
        return await agent_of(context.records, tenant, name)
    agents = await context.records.agents.list(tenant, _TWO)
    if len(agents) != 1:
        count = "several agents" if agents else "no agent"
        raise InvalidArgumentError(
            f"A conversation belongs to an agent, and there is {count}."
            if not agents
            else f"A conversation belongs to an agent, and there are {count}.",
            remedy=f"Send the id or the name of one as '{_AGENT}' in 'metadata'; GET "
            "/openai/v1/models lists them.",
        )
    return agents[0]


async def _found(context: Context, tenant: TenantId, conversation_id: str) -> Conversation:
    return await context.records.conversations.get(tenant, ConversationId(conversation_id))


def _thread(conversation: Conversation) -> Thread:
    return Thread(conversation.agent_id, conversation.id)


def _object(conversation: Conversation) -> ConversationObject:
    return ConversationObject(
        id=conversation.id,
        created_at=int(conversation.created_at.timestamp()),
        metadata={_AGENT: conversation.agent_id},
    )
