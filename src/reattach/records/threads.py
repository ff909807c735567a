"""The messages of threads, as rows: which message stands where in which thread.

A message is stored once, and has a place in every thread that shows it: a fork shares the
messages of its source. Place 0 is the system message's; all others follow it.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import RowMapping, Select, delete, exists, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.approvals import FOLLOWING, PendingApproval, pending_approval
from reattach.context import in_context, summary_of
from reattach.ids import AgentId, MessageId, TenantId
from reattach.messages import Message, Role
from reattach.records import lookup, schema
from reattach.records.base import Thread, ThreadContext

_FIELDS: Final = Message.__struct_fields__
_SYSTEM: Final = 0


def message_of(row: RowMapping) -> Message:
    return Message(**{name: row[name] for name in _FIELDS})


def placed(thread: Thread) -> Select[Any]:
    """The messages of a thread with their places; the reader gives the order."""
    places = schema.thread_messages
    return (
        select(schema.messages, places.c.position)
        .join(places, places.c.message_id == schema.messages.c.id)
        .where(places.c.thread_key == thread.key)
    )


async def place_of(
    connection: AsyncConnection, thread: Thread, message_id: MessageId | None
) -> int | None:
    """Where the message stands; None for none. Raises NotFoundError if it is not in the thread."""
    if message_id is None:
        return None
    places = schema.thread_messages
    place: int | None = await connection.scalar(
        select(places.c.position).where(
            places.c.thread_key == thread.key, places.c.message_id == message_id
        )
    )
    if place is None:
        raise lookup.not_found(schema.messages, message_id)
    return place


async def hold(connection: AsyncConnection, tenant: TenantId, thread: Thread) -> None:
    """Let nobody else change the thread until the transaction ends. Raises NotFoundError."""
    await lookup.require_thread(connection, tenant, thread)
    if thread.conversation_id is None:
        await lookup.hold(connection, schema.agents, tenant, thread.agent_id)
    else:
        await lookup.hold(connection, schema.conversations, tenant, thread.conversation_id)


async def context(connection: AsyncConnection, thread: Thread) -> ThreadContext:
    """What is in context of the thread. What a summary stands for is not read."""
    place = schema.thread_messages.c.position
    found = await connection.execute(
        placed(thread).where(schema.messages.c.role == Role.SUMMARY).order_by(place.desc()).limit(1)
    )
    row = found.mappings().one_or_none()
    rows = placed(thread).order_by(place)
    if row is not None:
        kept_from = summary_of(message_of(row)).kept_from
        kept = await connection.scalar(
            select(place).where(
                schema.thread_messages.c.thread_key == thread.key,
                schema.thread_messages.c.message_id == kept_from,
            )
        )
        first = row["position"] if kept is None else min(kept, row["position"])
        rows = rows.where((place >= first) | (place == _SYSTEM))
    messages = [message_of(one) for one in (await connection.execute(rows)).mappings()]
    counted = await _counted_tokens(connection, messages)
    return ThreadContext(in_context(messages), counted)


async def _counted_tokens(connection: AsyncConnection, messages: Sequence[Message]) -> int | None:
    """What the provider counted with the last answer, unless a summary came after it."""
    for message in reversed(messages):
        if message.role is Role.SUMMARY:
            return None
        if message.role is Role.ASSISTANT and message.step_id is not None:
            steps = schema.steps
            usage = await connection.scalar(
                select(steps.c.usage).where(steps.c.id == message.step_id)
            )
            return usage.prompt_tokens or None if usage is not None else None
    return None


async def pending(connection: AsyncConnection, thread: Thread) -> PendingApproval | None:
    """The approval request of the thread that has no answer."""
    place = schema.thread_messages.c.position
    spoken = (
        placed(thread)
        .with_only_columns(place)
        .where(schema.messages.c.role.not_in(FOLLOWING))
        .order_by(place.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = await connection.execute(placed(thread).where(place >= spoken).order_by(place))
    return pending_approval([message_of(row) for row in rows.mappings()])


async def answers(connection: AsyncConnection, thread: Thread, limit: int) -> list[Message]:
    """The clients' answers to approval requests in the thread, the newest first."""
    rows = await connection.execute(
        placed(thread)
        .where(schema.messages.c.role == Role.APPROVAL)
        .order_by(schema.thread_messages.c.position.desc())
        .limit(limit)
    )
    return [message_of(row) for row in rows.mappings()]


async def put_system(
    connection: AsyncConnection, tenant: TenantId, thread: Thread, message: Message
) -> None:
    """Begin a thread that has no system message with this one."""
    await _store(connection, tenant, thread.agent_id, [message])
    await _place(connection, thread, [message], _SYSTEM)


async def set_system(
    connection: AsyncConnection, tenant: TenantId, thread: Thread, message: Message
) -> None:
    """Give the thread's system message the parts of this one, or the thread this one."""
    places = schema.thread_messages
    messages = schema.messages
    present = select(places.c.message_id).where(
        places.c.thread_key == thread.key, places.c.position == _SYSTEM
    )
    changed = await connection.execute(
        update(messages)
        .where(messages.c.id == present.scalar_subquery())
        .values(parts=message.parts)
    )
    if not changed.rowcount:
        await put_system(connection, tenant, thread, message)


async def append(
    connection: AsyncConnection, tenant: TenantId, thread: Thread, messages: Sequence[Message]
) -> None:
    """Store the messages, and place them in order after those of the thread."""
    if not messages:
        return
    places = schema.thread_messages
    last = await connection.scalar(
        select(func.max(places.c.position)).where(places.c.thread_key == thread.key)
    )
    await _store(connection, tenant, thread.agent_id, messages)
    await _place(connection, thread, messages, (last or _SYSTEM) + 1)


async def copy_places(
    connection: AsyncConnection, source: Thread, target: Thread, up_to: MessageId | None
) -> None:
    """Show the source's messages, but its system message, in the target.

    Up to and including ``up_to``; raises NotFoundError if that is not in the source.
    """
    places = schema.thread_messages
    rows = select(literal(target.key), places.c.position, places.c.message_id).where(
        places.c.thread_key == source.key, places.c.position > _SYSTEM
    )
    if up_to is not None:
        rows = rows.where(places.c.position <= await place_of(connection, source, up_to))
    columns = ["thread_key", "position", "message_id"]
    await connection.execute(insert(places).from_select(columns, rows))


async def clear(connection: AsyncConnection, thread: Thread, *, system_too: bool) -> None:
    """Empty the thread, and forget the messages that no other thread shows."""
    places = schema.thread_messages
    messages = schema.messages
    gone = places.c.thread_key == thread.key
    if not system_too:
        gone &= places.c.position > _SYSTEM
    elsewhere = places.alias()
    await connection.execute(
        delete(messages).where(
            messages.c.id.in_(select(places.c.message_id).where(gone)),
            ~exists().where(
                elsewhere.c.message_id == messages.c.id, elsewhere.c.thread_key != thread.key
            ),
        )
    )
    await connection.execute(delete(places).where(gone))


async def _store(
    connection: AsyncConnection, tenant: TenantId, agent_id: AgentId, messages: Sequence[Message]
) -> None:
    rows = [
        {"tenant": tenant, "agent_id": agent_id} | msgspec.structs.asdict(message)
        for message in messages
    ]
    await connection.execute(insert(schema.messages), rows)


async def _place(
    connection: AsyncConnection, thread: Thread, messages: Sequence[Message], first: int
) -> None:
    rows = [
        {"thread_key": thread.key, "position": position, "message_id": message.id}
        for position, message in enumerate(messages, first)
    ]
    await connection.execute(insert(schema.thread_messages), rows)
