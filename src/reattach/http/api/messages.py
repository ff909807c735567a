"""Routes for stored messages: of a conversation, of an agent, of all agents, and one by one."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Depends, Query, Response

from reattach.domain.ids import (
    CONVERSATION_OR_DEFAULT_PATTERN,
    CONVERSATION_PATTERN,
    ConversationId,
    MessageId,
)
from reattach.domain.limits.requests import MAX_ID_CHARS, MAX_PAGE_ITEMS, PAGE_BYTES
from reattach.domain.messages import Message
from reattach.http.context import AccessDep, ContextDep, TenantDep
from reattach.http.json import JsonResponse, list_response
from reattach.http.parse_send import find_thread
from reattach.http.routes import routes
from reattach.http.schemas.fields import AgentPath, MessagePath, OrderParam, QueryAgent, ThreadPath
from reattach.http.schemas.message import MessageItem
from reattach.records.base import Span
from reattach.wire.letta import MessageType
from reattach.wire.stored import message_items

router = routes()

_MIN_BATCH: Final = 100
"""Fewest messages per query when filtering by type, so that small pages need few queries."""

Types = Annotated[
    list[MessageType] | None,
    Query(
        max_length=20,
        description="Only items of these types; `limit` counts messages.",
    ),
]


Conversation = Annotated[
    str | None,
    Query(pattern=CONVERSATION_PATTERN, description="Only of this conversation."),
]


def span_query(default_order: Literal["asc", "desc"]) -> Any:
    """Return a dependency that reads a span from the query."""

    async def span(
        before: Annotated[
            MessageId | None,
            Query(max_length=MAX_ID_CHARS, description="Id of a message; returns older ones."),
        ] = None,
        after: Annotated[
            MessageId | None,
            Query(max_length=MAX_ID_CHARS, description="Id of a message; returns newer ones."),
        ] = None,
        limit: Annotated[
            int, Query(ge=0, le=MAX_PAGE_ITEMS, description="Maximum number of stored messages.")
        ] = 100,
        order: OrderParam = default_order,
        order_by: Annotated[Literal["created_at"], Query()] = "created_at",  # noqa: ARG001
    ) -> Span:
        return Span(
            limit,
            ascending=order == "asc",
            before=before or None,
            after=after or None,
        )

    return Depends(span)


NewestSpan = Annotated[Span, span_query("desc")]
OldestSpan = Annotated[Span, span_query("asc")]


Listing = Callable[[Span], Awaitable[Sequence[Message]]]
"""A list method of ``records.messages`` that is bound to everything except the span."""


@router.get(
    "/v1/conversations/{conversation_id}/messages",
    tags=["conversations"],
    operation_id="list_conversation_messages",
    summary="List the messages of a conversation",
    description="A stream token gets them without system messages.",
    response_model=list[MessageItem],
)
async def list_conversation_messages(
    conversation_id: ThreadPath,
    context: ContextDep,
    access: AccessDep,
    span: NewestSpan,
    agent_id: QueryAgent = None,
    include_return_message_types: Types = None,
) -> Response:
    thread = await find_thread(context.records, access.tenant, conversation_id, agent_id)
    listing = partial(
        context.records.messages.list,
        access.tenant,
        thread,
        system_too=access.shows_system_messages,
    )
    return await answer(listing, span, include_return_message_types)


@router.get(
    "/v1/agents/{agent_id}/messages",
    tags=["agents"],
    operation_id="list_messages",
    summary="List the messages of an agent",
    response_model=list[MessageItem],
)
async def list_agent_messages(
    agent_id: AgentPath,
    context: ContextDep,
    tenant: TenantDep,
    span: NewestSpan,
    conversation_id: Annotated[
        ConversationId | None,
        Query(
            pattern=CONVERSATION_OR_DEFAULT_PATTERN,
            description="Only of this conversation; `default` is the default conversation.",
        ),
    ] = None,
    include_return_message_types: Types = None,
) -> Response:
    listing = partial(
        context.records.messages.list_of_agent,
        tenant,
        agent_id,
        conversation_id=conversation_id,
    )
    return await answer(listing, span, include_return_message_types, oldest_first=True)


@router.get(
    "/v1/messages/",
    tags=["messages"],
    operation_id="list_all_messages",
    summary="List the messages of all agents",
    response_model=list[MessageItem],
)
async def list_all_messages(
    context: ContextDep,
    tenant: TenantDep,
    span: NewestSpan,
    conversation_id: Conversation = None,
    include_return_message_types: Types = None,
) -> Response:
    if conversation_id is not None:
        thread = await find_thread(context.records, tenant, conversation_id, None)
        listing: Listing = partial(context.records.messages.list, tenant, thread)
    else:
        listing = partial(context.records.messages.list_of_tenant, tenant)
    return await answer(listing, span, include_return_message_types)


@router.get(
    "/v1/messages/{message_id}",
    tags=["messages"],
    operation_id="retrieve_message",
    summary="Retrieve a message",
    response_model=list[MessageItem],
)
async def retrieve_message(
    message_id: MessagePath, context: ContextDep, tenant: TenantDep
) -> Response:
    message = await context.records.messages.get(tenant, message_id)
    return JsonResponse(message_items(message))


async def items_response(messages: Sequence[Message]) -> Response:
    """Return the items of the messages; items of one message stay together, in their own order."""
    return await list_response(messages, _items)


def _items(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [item for message in messages for item in message_items(message)]


async def answer(
    listing: Listing,
    span: Span,
    types: Sequence[MessageType] | None = None,
    *,
    oldest_first: bool = False,
) -> Response:
    """Return the items of these types in the span of the list.

    With ``oldest_first``, the requested order only selects the end of the list.
    """
    if types is None:
        messages = await listing(span)
        return await items_response(
            messages[::-1] if oldest_first and not span.ascending else messages
        )
    groups = await _items_of_types(listing, span, frozenset(types))
    if oldest_first and not span.ascending:
        groups.reverse()
    return JsonResponse([item for items in groups for item in items])


async def _items_of_types(
    listing: Listing, span: Span, types: frozenset[MessageType]
) -> list[list[dict[str, Any]]]:
    """Return the items of these types, grouped by message, for up to ``span.limit`` messages.

    Messages without such items do not count, because the SDKs take an empty page for the end.
    """
    pages: list[list[dict[str, Any]]] = []
    left_bytes = PAGE_BYTES
    rest = replace(span, limit=max(span.limit, _MIN_BATCH), ascending=span.goes_to_newer)
    while len(pages) < span.limit and left_bytes > 0:
        messages = await listing(rest)
        if not messages:
            break
        for message in messages:
            items = [item for item in message_items(message) if item["message_type"] in types]
            if items and len(pages) < span.limit and left_bytes > 0:
                pages.append(items)
                left_bytes -= len(msgspec.json.encode(items))
        last = messages[-1].id
        rest = replace(rest, after=last) if span.goes_to_newer else replace(rest, before=last)
    if span.goes_to_newer is not span.ascending:
        pages.reverse()
    return pages
