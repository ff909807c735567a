"""The rows that place messages in threads.

A message is stored once and has a place in each of its threads: a fork shares the messages of its
source. The system message has place 0, and all others follow it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BindParameter,
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from reattach.domain.approvals import FOLLOWING, PendingApproval, pending_approval
from reattach.domain.context import in_context, summary_of
from reattach.domain.ids import AgentId, MessageId, StepId, TenantId
from reattach.domain.messages import (
    ApprovalPart,
    ContentPart,
    Message,
    Role,
    SummaryPart,
    ToolReturnPart,
)
from reattach.records import lookup
from reattach.records.base import Thread, ThreadContext
from reattach.records.contexts import CachedContext, size_bytes
from reattach.records.database import schema
from reattach.records.database.damage import UNREADABLE, note_row
from reattach.records.database.prepared import PreparedStatement, Row

_FIELDS: Final = Message.__struct_fields__
_SYSTEM: Final = 0
_END: Final = 2**31 - 1
"""Only damaged places lie beyond it; SQLite orders text and bytes after all numbers."""


def message_of(row: Row) -> Message:
    """Return the message of the row; a placeholder if the row is damaged."""
    role, parts = row["role"], row["parts"]
    kinds = _KINDS.get(role)
    if parts is UNREADABLE or role is None or (kinds and not _begins_with(parts, kinds)):
        return _unreadable(row)
    return Message(**{name: row[name] for name in _FIELDS})


_KINDS: Final[Mapping[Role | None, tuple[type, ...]]] = {
    Role.TOOL: (ToolReturnPart,),
    Role.APPROVAL: (ApprovalPart, ToolReturnPart),
    Role.SUMMARY: (SummaryPart,),
}
"""The types of the first part of messages with these roles."""


def _begins_with(parts: Sequence[ContentPart], kinds: tuple[type, ...]) -> bool:
    return bool(parts) and isinstance(parts[0], kinds)


def _unreadable(row: Row) -> Message:
    """Return a text message that says so, with the role of the row if it is known."""
    note_row("messages", row["id"], "its role and parts cannot be read together")
    role = row["role"] if row["role"] in {Role.SYSTEM, Role.USER} else Role.ASSISTANT
    values = {name: row[name] for name in _FIELDS}
    return Message(**{**values, "role": role, "parts": UNREADABLE, "step_id": None})


def with_places(thread: Thread) -> Select[Any]:
    """Select the messages of a thread with their places, in no order."""
    return _with_places(thread.key)


def _with_places(thread_key: str | BindParameter[str]) -> Select[Any]:
    places = schema.thread_messages
    return (
        select(schema.messages, places.c.position)
        .join(places, places.c.message_id == schema.messages.c.id)
        .where(places.c.thread_key == thread_key, places.c.position < _END)
    )


# The queries of every turn, built once because building them costs more than running them.
_places: Final = schema.thread_messages
_position: Final = _places.c.position
_OF_THREAD: Final = _with_places(bindparam("thread_key"))
_in_order: Final = _OF_THREAD.order_by(_position)
_IN_ORDER: Final = PreparedStatement(_in_order)
_SINCE: Final = PreparedStatement(
    _in_order.where((_position >= bindparam("first")) | (_position == _SYSTEM))
)
# Two statements, because SQLite reads the whole thread for a condition with OR.
_FROM: Final = PreparedStatement(_in_order.where(_position >= bindparam("first")))
_SYSTEM_MESSAGE: Final = PreparedStatement(_OF_THREAD.where(_position == _SYSTEM))
_SUMMARIES: Final = _OF_THREAD.where(schema.messages.c.role == Role.SUMMARY).order_by(
    _position.desc()
)
_SPOKEN: Final = (
    _OF_THREAD.with_only_columns(_position)
    .where(*(schema.messages.c.role != role for role in sorted(FOLLOWING)))
    .order_by(_position.desc())
    .limit(1)
)
_SINCE_SPOKEN: Final = PreparedStatement(_in_order.where(_position >= _SPOKEN.scalar_subquery()))
_PLACE: Final = PreparedStatement(
    select(_position).where(
        _places.c.thread_key == bindparam("thread_key"),
        _places.c.message_id == bindparam("message_id"),
    )
)
_LAST: Final = PreparedStatement(
    select(func.max(_position)).where(
        _places.c.thread_key == bindparam("thread_key"), _position < _END
    )
)
_USAGE: Final = PreparedStatement(
    select(schema.steps.c.usage).where(schema.steps.c.id == bindparam("step_id"))
)
_INSERT_MESSAGES: Final = PreparedStatement(
    insert(schema.messages), "tenant", "agent_id", *Message.__struct_fields__
)
_INSERT_PLACES: Final = PreparedStatement(insert(_places), "thread_key", "position", "message_id")


def place_of(connection: Connection, thread: Thread, message_id: MessageId) -> int:
    """Return the message's place. Raises NotFoundError if the thread lacks it."""
    asked = {"thread_key": thread.key, "message_id": message_id}
    place: int | None = _PLACE.value(connection, asked)
    if place is None:
        raise lookup.not_found(schema.messages, message_id)
    return place


def lock(connection: Connection, tenant: TenantId, thread: Thread) -> None:
    """Lock the thread against other changes until the transaction ends. Raises NotFoundError."""
    lookup.require_thread(connection, tenant, thread)
    if thread.conversation_id is None:
        lookup.lock(connection, schema.agents, tenant, thread.agent_id)
    else:
        lookup.lock(connection, schema.conversations, tenant, thread.conversation_id)


def context(
    connection: Connection, thread: Thread, cached: CachedContext | None = None
) -> tuple[ThreadContext, CachedContext | None]:
    """Return the context of the thread, and what to cache of it for the next call.

    Neither the messages that a summary replaces are read nor those in ``cached``.
    """
    asked: dict[str, object] = {"thread_key": thread.key}
    if cached is not None:
        asked["first"] = cached.place[0]
        system = _SYSTEM_MESSAGE.mappings(connection, asked)
        rows = _FROM.mappings(connection, asked)
        is_same = [(row["position"], row["id"]) for row in rows[:1]] == [cached.place]
        if system and is_same and all(row["role"] is not Role.SUMMARY for row in rows[1:]):
            return _context_of(connection, system, cached, rows[1:])
    rows_of_context = _IN_ORDER
    for row in connection.execute(_SUMMARIES, asked).mappings():
        summary = message_of(row)
        if summary.role is not Role.SUMMARY:
            continue  # It is damaged, so an older one is used.
        kept_from = summary_of(summary).kept_from
        place = _PLACE.value(connection, {**asked, "message_id": kept_from})
        asked["first"] = row["position"] if place is None else min(place, row["position"])
        rows_of_context = _SINCE
        break
    rows = rows_of_context.mappings(connection, asked)
    return _context_of(connection, rows[:1], None, rows[1:])


def _context_of(
    connection: Connection,
    system: Sequence[Row],
    cached: CachedContext | None,
    rows: Sequence[Row],
) -> tuple[ThreadContext, CachedContext | None]:
    """Return the context of the system message, the cached messages, and then the rows."""
    first = [message_of(row) for row in system]
    read = [message_of(row) for row in rows]
    messages = [*first, *(cached.messages if cached else ()), *read]
    if cached is None:
        messages = in_context(messages)
    step_id = _last_step([*first, *read], cached.step_id if cached else None)
    context = ThreadContext(messages, _counted_tokens(connection, step_id))
    if cached is not None and not rows:
        return context, cached
    if not rows or system[0]["position"] != _SYSTEM:
        return context, None
    following = tuple(messages[1:])
    size = size_bytes(following) if cached is None else cached.size_bytes + size_bytes(read)
    place = (rows[-1]["position"], rows[-1]["id"])
    return context, CachedContext(following, place, step_id, size)


def _last_step(messages: Sequence[Message], before: StepId | None) -> StepId | None:
    """Return the step of the last answer, unless a summary came after it."""
    for message in reversed(messages):
        if message.role is Role.SUMMARY:
            return None
        if message.role is Role.ASSISTANT and message.step_id is not None:
            return message.step_id
    return before


def _counted_tokens(connection: Connection, step_id: StepId | None) -> int | None:
    """Return the tokens that the provider counted with the step."""
    usage = None if step_id is None else _USAGE.value(connection, {"step_id": step_id})
    return usage.prompt_tokens or None if usage is not None else None


def pending(connection: Connection, thread: Thread) -> PendingApproval | None:
    """Return the approval request of the thread that has no answer."""
    rows = _SINCE_SPOKEN.mappings(connection, {"thread_key": thread.key})
    return pending_approval([message_of(row) for row in rows])


def answers(connection: Connection, thread: Thread, limit: int) -> list[Message]:
    """Return the clients' answers to approval requests in the thread, newest first."""
    rows = connection.execute(
        with_places(thread)
        .where(schema.messages.c.role == Role.APPROVAL)
        .order_by(schema.thread_messages.c.position.desc())
        .limit(limit)
    )
    return [message_of(row) for row in rows.mappings()]


def put_system(connection: Connection, tenant: TenantId, thread: Thread, message: Message) -> None:
    """Add the system message to a thread that has none."""
    _store(connection, tenant, thread.agent_id, [message])
    _place(connection, thread, [message], _SYSTEM)


def set_system(connection: Connection, tenant: TenantId, thread: Thread, message: Message) -> None:
    """Replace the parts of the thread's system message, or add this one if there is none."""
    places = schema.thread_messages
    messages = schema.messages
    present = select(places.c.message_id).where(
        places.c.thread_key == thread.key, places.c.position == _SYSTEM
    )
    changed = connection.execute(
        update(messages)
        .where(messages.c.id == present.scalar_subquery())
        .values(parts=message.parts)
    )
    if not changed.rowcount:
        put_system(connection, tenant, thread, message)


def append(
    connection: Connection, tenant: TenantId, thread: Thread, messages: Sequence[Message]
) -> None:
    """Store the messages and place them, in order, at the end of the thread."""
    if not messages:
        return
    last = _LAST.value(connection, {"thread_key": thread.key})
    _store(connection, tenant, thread.agent_id, messages)
    _place(connection, thread, messages, (last or _SYSTEM) + 1)


def copy_places(
    connection: Connection, source: Thread, target: Thread, up_to: MessageId | None
) -> None:
    """Place the source's messages in the target, except for the system message.

    Up to and including ``up_to``; raises NotFoundError if the source does not have it.
    """
    places = schema.thread_messages
    rows = select(literal(target.key), places.c.position, places.c.message_id).where(
        places.c.thread_key == source.key, places.c.position > _SYSTEM
    )
    if up_to is not None:
        rows = rows.where(places.c.position <= place_of(connection, source, up_to))
    columns = ["thread_key", "position", "message_id"]
    connection.execute(insert(places).from_select(columns, rows))


def clear(connection: Connection, thread: Thread, *, system_too: bool) -> None:
    """Empty the thread, and delete the messages that are in no other thread."""
    places = schema.thread_messages
    messages = schema.messages
    gone = places.c.thread_key == thread.key
    if not system_too:
        gone &= places.c.position > _SYSTEM
    elsewhere = places.alias()
    connection.execute(
        delete(messages).where(
            messages.c.id.in_(select(places.c.message_id).where(gone)),
            ~exists().where(
                elsewhere.c.message_id == messages.c.id, elsewhere.c.thread_key != thread.key
            ),
        )
    )
    connection.execute(delete(places).where(gone))


def _store(
    connection: Connection, tenant: TenantId, agent_id: AgentId, messages: Sequence[Message]
) -> None:
    rows = [
        {"tenant": tenant, "agent_id": agent_id} | msgspec.structs.asdict(message)
        for message in messages
    ]
    _INSERT_MESSAGES.run_each(connection, rows)


def _place(connection: Connection, thread: Thread, messages: Sequence[Message], first: int) -> None:
    rows = [
        {"thread_key": thread.key, "position": position, "message_id": message.id}
        for position, message in enumerate(messages, first)
    ]
    _INSERT_PLACES.run_each(connection, rows)
