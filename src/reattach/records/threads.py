"""The messages of threads, as rows: which message stands where in which thread.

A message is stored once, and has a place in every thread that shows it: a fork shares the
messages of its source. Place 0 is the system message's; all others follow it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BindParameter,
    Connection,
    RowMapping,
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
from reattach.records.contexts import KeptContext, size_bytes
from reattach.records.database import schema
from reattach.records.database.damage import UNREADABLE, note_row

_FIELDS: Final = Message.__struct_fields__
_SYSTEM: Final = 0


def message_of(row: RowMapping) -> Message:
    """The message; one that stands in for it if the row is damaged."""
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
"""The types of parts that messages of these roles have."""


def _begins_with(parts: Sequence[ContentPart], kinds: tuple[type, ...]) -> bool:
    return bool(parts) and isinstance(parts[0], kinds)


def _unreadable(row: RowMapping) -> Message:
    """A message of text that says so, from whoever said it, else from the model."""
    note_row("messages", row["id"], "its role and parts cannot be read together")
    role = row["role"] if row["role"] in {Role.SYSTEM, Role.USER} else Role.ASSISTANT
    values = {name: row[name] for name in _FIELDS}
    return Message(**{**values, "role": role, "parts": UNREADABLE, "step_id": None})


def placed(thread: Thread) -> Select[Any]:
    """The messages of a thread with their places; the reader gives the order."""
    return _placed(thread.key)


def _placed(thread_key: str | BindParameter[str]) -> Select[Any]:
    places = schema.thread_messages
    return (
        select(schema.messages, places.c.position)
        .join(places, places.c.message_id == schema.messages.c.id)
        .where(places.c.thread_key == thread_key)
    )


# What every turn asks, which costs more to build than to run.
_places: Final = schema.thread_messages
_position: Final = _places.c.position
_OF_THREAD: Final = _placed(bindparam("thread_key"))
_IN_ORDER: Final = _OF_THREAD.order_by(_position)
_SINCE: Final = _IN_ORDER.where((_position >= bindparam("first")) | (_position == _SYSTEM))
# Two statements: asked for both at once, SQLite goes through the whole thread.
_FROM: Final = _IN_ORDER.where(_position >= bindparam("first"))
_SYSTEM_MESSAGE: Final = _OF_THREAD.where(_position == _SYSTEM)
_SUMMARIES: Final = _OF_THREAD.where(schema.messages.c.role == Role.SUMMARY).order_by(
    _position.desc()
)
_SPOKEN: Final = (
    _OF_THREAD.with_only_columns(_position)
    .where(schema.messages.c.role.not_in(FOLLOWING))
    .order_by(_position.desc())
    .limit(1)
)
_SINCE_SPOKEN: Final = _IN_ORDER.where(_position >= _SPOKEN.scalar_subquery())
_PLACE: Final = select(_position).where(
    _places.c.thread_key == bindparam("thread_key"),
    _places.c.message_id == bindparam("message_id"),
)
_LAST: Final = select(func.max(_position)).where(_places.c.thread_key == bindparam("thread_key"))
_USAGE: Final = select(schema.steps.c.usage).where(schema.steps.c.id == bindparam("step_id"))
_INSERT_MESSAGES: Final = insert(schema.messages)
_INSERT_PLACES: Final = insert(_places)


def place_of(connection: Connection, thread: Thread, message_id: MessageId | None) -> int | None:
    """Where the message stands; None for none. Raises NotFoundError if it is not in the thread."""
    if message_id is None:
        return None
    asked = {"thread_key": thread.key, "message_id": message_id}
    place: int | None = connection.scalar(_PLACE, asked)
    if place is None:
        raise lookup.not_found(schema.messages, message_id)
    return place


def hold(connection: Connection, tenant: TenantId, thread: Thread) -> None:
    """Let nobody else change the thread until the transaction ends. Raises NotFoundError."""
    lookup.require_thread(connection, tenant, thread)
    if thread.conversation_id is None:
        lookup.hold(connection, schema.agents, tenant, thread.agent_id)
    else:
        lookup.hold(connection, schema.conversations, tenant, thread.conversation_id)


def context(
    connection: Connection, thread: Thread, kept: KeptContext | None = None
) -> tuple[ThreadContext, KeptContext | None]:
    """The context of the thread, and the part of it that the next call can be given as ``kept``.

    Neither the messages that a summary stands for are read nor those that are kept.
    """
    asked: dict[str, object] = {"thread_key": thread.key}
    if kept is not None:
        asked["first"] = kept.place[0]
        system = connection.execute(_SYSTEM_MESSAGE, asked).mappings().all()
        rows = connection.execute(_FROM, asked).mappings().all()
        is_same = [(row["position"], row["id"]) for row in rows[:1]] == [kept.place]
        if system and is_same and all(row["role"] is not Role.SUMMARY for row in rows[1:]):
            return _context_of(connection, system, kept, rows[1:])
    rows_of_context = _IN_ORDER
    for row in connection.execute(_SUMMARIES, asked).mappings():
        summary = message_of(row)
        if summary.role is not Role.SUMMARY:
            continue  # It is damaged, so an older one has to do.
        kept_from = summary_of(summary).kept_from
        place = connection.scalar(_PLACE, {**asked, "message_id": kept_from})
        asked["first"] = row["position"] if place is None else min(place, row["position"])
        rows_of_context = _SINCE
        break
    rows = connection.execute(rows_of_context, asked).mappings().all()
    return _context_of(connection, rows[:1], None, rows[1:])


def _context_of(
    connection: Connection,
    system: Sequence[RowMapping],
    kept: KeptContext | None,
    rows: Sequence[RowMapping],
) -> tuple[ThreadContext, KeptContext | None]:
    """The context that begins with the system message, goes on as kept, and then as the rows."""
    first = [message_of(row) for row in system]
    read = [message_of(row) for row in rows]
    messages = [*first, *(kept.messages if kept else ()), *read]
    if kept is None:
        messages = in_context(messages)
    step_id = _last_step([*first, *read], kept.step_id if kept else None)
    context = ThreadContext(messages, _counted_tokens(connection, step_id))
    if kept is not None and not rows:
        return context, kept
    if not rows or system[0]["position"] != _SYSTEM:
        return context, None
    told = tuple(messages[1:])
    size = size_bytes(told) if kept is None else kept.size_bytes + size_bytes(read)
    place = (rows[-1]["position"], rows[-1]["id"])
    return context, KeptContext(told, place, step_id, size)


def _last_step(messages: Sequence[Message], before: StepId | None) -> StepId | None:
    """The step of the last answer, unless a summary came after it."""
    for message in reversed(messages):
        if message.role is Role.SUMMARY:
            return None
        if message.role is Role.ASSISTANT and message.step_id is not None:
            return message.step_id
    return before


def _counted_tokens(connection: Connection, step_id: StepId | None) -> int | None:
    """The tokens that the provider counted with the step."""
    usage = None if step_id is None else connection.scalar(_USAGE, {"step_id": step_id})
    return usage.prompt_tokens or None if usage is not None else None


def pending(connection: Connection, thread: Thread) -> PendingApproval | None:
    """The approval request of the thread that has no answer."""
    rows = connection.execute(_SINCE_SPOKEN, {"thread_key": thread.key})
    return pending_approval([message_of(row) for row in rows.mappings()])


def answers(connection: Connection, thread: Thread, limit: int) -> list[Message]:
    """The clients' answers to approval requests in the thread, the newest first."""
    rows = connection.execute(
        placed(thread)
        .where(schema.messages.c.role == Role.APPROVAL)
        .order_by(schema.thread_messages.c.position.desc())
        .limit(limit)
    )
    return [message_of(row) for row in rows.mappings()]


def put_system(connection: Connection, tenant: TenantId, thread: Thread, message: Message) -> None:
    """Begin a thread that has no system message with this one."""
    _store(connection, tenant, thread.agent_id, [message])
    _place(connection, thread, [message], _SYSTEM)


def set_system(connection: Connection, tenant: TenantId, thread: Thread, message: Message) -> None:
    """Give the thread's system message the parts of this one, or the thread this one."""
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
    """Store the messages, and place them in order after those of the thread."""
    if not messages:
        return
    last = connection.scalar(_LAST, {"thread_key": thread.key})
    _store(connection, tenant, thread.agent_id, messages)
    _place(connection, thread, messages, (last or _SYSTEM) + 1)


def copy_places(
    connection: Connection, source: Thread, target: Thread, up_to: MessageId | None
) -> None:
    """Show the source's messages, but its system message, in the target.

    Up to and including ``up_to``; raises NotFoundError if that is not in the source.
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
    """Empty the thread, and forget the messages that no other thread shows."""
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
    connection.execute(_INSERT_MESSAGES, rows)


def _place(connection: Connection, thread: Thread, messages: Sequence[Message], first: int) -> None:
    rows = [
        {"thread_key": thread.key, "position": position, "message_id": message.id}
        for position, message in enumerate(messages, first)
    ]
    connection.execute(_INSERT_PLACES, rows)
