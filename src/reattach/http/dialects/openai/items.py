"""Pages of items, and the items of conversations."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from reattach.domain.approvals import FOLLOWING
from reattach.domain.errors import NotFoundError
from reattach.domain.ids import TenantId
from reattach.domain.messages import Message, Role, ToolReturnPart
from reattach.http.dialects.openai.response_bodies import ItemList
from reattach.records.base import Span, Thread
from reattach.records.records import Records
from reattach.wire.dialects.openai_items import input_items, stored_items

_PAGE_MESSAGES: Final = 100

Item = Mapping[str, Any]


def item_page(items: Sequence[Item], *, after: str | None, limit: int) -> ItemList:
    """Return a page of ordered items. Raises NotFoundError if ``after`` is not one of them."""
    first = 0
    if after is not None:
        places = {item["id"]: place for place, item in enumerate(items)}
        if after not in places:
            raise NotFoundError(f"Item not found with id={after}")
        first = places[after] + 1
    return listed(items[first : first + limit], has_more=len(items) > first + limit)


def listed(items: Sequence[Item], *, has_more: bool) -> ItemList:
    return ItemList(
        data=[dict(item) for item in items],
        first_id=items[0]["id"] if items else None,
        last_id=items[-1]["id"] if items else None,
        has_more=has_more,
    )


async def thread_items(
    records: Records, tenant: TenantId, thread: Thread, *, ascending: bool
) -> AsyncIterator[Item]:
    """Yield the items of a conversation in order.

    Calls come with what they returned, so messages are taken together that belong to one of the
    agent's.
    """
    group: list[Message] = []
    async for message in _messages(records, tenant, thread, ascending=ascending):
        ends = message.role not in FOLLOWING
        if ascending and ends and group:
            for item in _items(group):
                yield item
            group = []
        group.append(message)
        if not ascending and ends:
            for item in reversed(_items(group[::-1])):
                yield item
            group = []
    for item in _items(group if ascending else group[::-1])[:: 1 if ascending else -1]:
        yield item


def items_of(messages: Sequence[Message]) -> list[Item]:
    """Return the items of consecutive messages."""
    groups: list[list[Message]] = []
    for message in messages:
        if not groups or message.role not in FOLLOWING:
            groups.append([])
        groups[-1].append(message)
    return [item for group in groups for item in _items(group)]


async def _messages(
    records: Records, tenant: TenantId, thread: Thread, *, ascending: bool
) -> AsyncIterator[Message]:
    last: Message | None = None
    while True:
        cursor = None if last is None else last.id
        span = (
            Span(_PAGE_MESSAGES, ascending, after=cursor)
            if ascending
            else Span(_PAGE_MESSAGES, ascending, before=cursor)
        )
        page = await records.messages.list(tenant, thread, span, system_too=False)
        if not page:  # A shorter page may only have reached its bound in bytes.
            return
        for message in page:
            yield message
        last = page[-1]


def _items(group: Sequence[Message]) -> list[Item]:
    """Return the items of one message and of those that follow it until the next one."""
    returns = {
        part.tool_call_id: part
        for message in group
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    }
    by_client = frozenset(
        part.tool_call_id
        for message in group
        if message.role is Role.APPROVAL
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    )
    items: list[Item] = []
    for message in group:
        if message.role is Role.ASSISTANT:
            items += stored_items(message, returns, by_client)
        elif message.role in {Role.USER, Role.APPROVAL, Role.SYSTEM}:
            items += input_items(message)
    return items
