"""The rows that place messages in threads.

A message is stored once and has a place in each of its threads: a fork shares the messages of its
source. The system message has place 0, and all others follow it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from reattach.domain.approvals import FOLLOWING, PendingApproval, pending_approval
from reattach.domain.context import ids_in_context, in_context, model_messages, summary_of
from reattach.domain.context_messages import ContextMessages
from reattach.domain.events import Usage
from reattach.domain.ids import MessageId, StepId, TenantId
from reattach.domain.messages import Message, Role, SummaryPart
from reattach.records import lookup
from reattach.records.base import Thread
from reattach.records.contexts.contexts import CachedContext, ThreadContext, last_step
from reattach.records.contexts.message_rows import PIECE_ROWS, Placed, PlacedMessages, message_of
from reattach.records.database import schema
from reattach.records.database.prepared import (
    Changes,
    PreparedInsert,
    PreparedStatement,
    Steps,
    ask,
    take_steps,
)

_SYSTEM: Final = 0
SHORT_THREAD: Final = 200
"""The messages of a thread whose ids are read in the event loop, in half a millisecond."""

_END: Final = 2**31 - 1
"""Only damaged places lie beyond it; SQLite orders text and bytes after all numbers."""


def with_places(thread_key: str | BindParameter[str]) -> Select[Any]:
    """Select the messages of a thread with their places, in no order."""
    places = schema.thread_messages
    return (
        select(schema.messages, places.c.position)
        .join(places, places.c.message_id == schema.messages.c.id)
        .where(places.c.thread_key == thread_key, places.c.position < _END)
    )


def last_position(thread_key: ColumnElement[str]) -> Select[tuple[int]]:
    """Select the position of the last message of a thread; NULL if it has none."""
    places = schema.thread_messages
    return select(func.max(places.c.position)).where(
        places.c.thread_key == thread_key, places.c.position < _END
    )


# The queries of every turn, built once because building them costs more than running them.
_places: Final = schema.thread_messages
_position: Final = _places.c.position
_OF_THREAD: Final = with_places(bindparam("thread_key"))
_in_order: Final = _OF_THREAD.order_by(_position)
_FROM: Final = PlacedMessages(_in_order.where(_position >= bindparam("first")))
_NEWEST_BEFORE: Final = PlacedMessages(
    _OF_THREAD.where(_position < bindparam("before")).order_by(_position.desc()).limit(PIECE_ROWS)
)
_SYSTEM_MESSAGE: Final = PlacedMessages(_OF_THREAD.where(_position == _SYSTEM))
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
_LAST: Final = PreparedStatement(last_position(bindparam("thread_key")))
_steps, _messages = schema.steps, schema.messages
_USAGE: Final = PreparedStatement(select(_steps.c.usage).where(_steps.c.id == bindparam("step_id")))
_newest_step: Final = (
    _OF_THREAD.with_only_columns(_messages.c.step_id)
    .where(
        _position >= bindparam("first"),
        _messages.c.role == Role.ASSISTANT,
        _messages.c.step_id.is_not(None),
    )
    .order_by(_position.desc())
    .limit(1)
)
_NEWEST_USAGE: Final = PreparedStatement(
    select(_steps.c.id, _steps.c.usage).where(
        _steps.c.id == func.coalesce(_newest_step.scalar_subquery(), bindparam("step_id"))
    )
)
"""The usage of the last answer since position ``first``, or else that of the step ``step_id``."""
_ids: Final = select(_places.c.message_id).order_by(_position)
# Without the messages: few of them are summaries, which another statement finds.
_IDS: Final = PreparedStatement(_ids.where(_places.c.thread_key == bindparam("thread_key")))
_FIRST_IDS: Final = PreparedStatement(
    _ids.where(_places.c.thread_key == bindparam("thread_key")).limit(
        bindparam("limit", type_=Integer)
    )
)
_SUMMARY_PARTS: Final = PreparedStatement(
    _OF_THREAD.with_only_columns(schema.messages.c.id, schema.messages.c.parts)
    .where(schema.messages.c.role == Role.SUMMARY)
    .order_by(_position.desc())
)
_summary: Final = case((schema.messages.c.role == Role.SUMMARY, schema.messages.c.parts))
_IDS_OF_ALL: Final = (
    select(_places.c.thread_key, _places.c.message_id, _summary)
    .join(schema.messages, _places.c.message_id == schema.messages.c.id)
    .where(_places.c.thread_key.in_(bindparam("thread_keys", expanding=True)))
    .order_by(_places.c.thread_key, _position)
)
_INSERT_MESSAGES: Final = PreparedInsert(
    schema.messages, "tenant", "agent_id", *Message.__struct_fields__
)
_INSERT_PLACES: Final = PreparedInsert(_places, "thread_key", "position", "message_id")


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
    connection: Connection,
    thread: Thread,
    cached: CachedContext | None = None,
    *,
    in_one_piece: bool = False,
) -> Steps[tuple[ThreadContext, CachedContext | None] | None]:
    """Return the context of the thread, and what to cache of it for the next call.

    Only a few of the messages that a summary replaces are read, and none of those in ``cached``.
    If ``in_one_piece``, None is returned if that takes more than PIECE_ROWS messages.
    """
    asked: dict[str, object] = {"thread_key": thread.key}
    if cached is not None:
        grown = yield from _grown(connection, asked, cached)
        if grown is not None:
            return grown
    placed = yield from _read_context(connection, asked, in_one_piece=in_one_piece)
    if placed is None:
        return None
    in_order = [one.message for one in placed]
    messages = in_context(in_order)
    step_id = last_step(in_order)
    if len(placed) < 2 or placed[0].position != _SYSTEM:
        counted = yield from _counted_tokens(step_id)
        for_model = ContextMessages(model_messages(messages))
        return ThreadContext((), ContextMessages(messages), for_model, counted), None
    cached = CachedContext.of(messages[1:], placed[-1].place, step_id)
    counted = yield from _counted_tokens(step_id)
    system = (messages[0],)
    return ThreadContext(system, cached.messages, cached.for_model, counted), cached


def _grown(
    connection: Connection, asked: Mapping[str, object], cached: CachedContext
) -> Steps[tuple[ThreadContext, CachedContext] | None]:
    """Return the cached context with the messages since then; None if it is no longer valid."""
    since = {**asked, "first": cached.place[0], "step_id": cached.step_id}
    rows = yield [
        (_SYSTEM_MESSAGE.stored, asked),
        (_FROM.stored, since),
        (_NEWEST_USAGE, since),
    ]
    system = _SYSTEM_MESSAGE.decoded(connection, asked, rows[0])
    newer = _FROM.decoded(connection, since, rows[1])
    later = [one.message for one in newer[1:]]
    is_same = bool(newer) and newer[0].place == cached.place
    if not system or not is_same or any(one.role is Role.SUMMARY for one in later):
        return None
    cached = cached.grown_by(later, newer[-1].place)
    usages: dict[Any, Any] = dict(rows[2])
    usage: Usage | None = usages.get(cached.step_id)
    counted = None if usage is None else usage.prompt_tokens or None
    context = ThreadContext((system[0].message,), cached.messages, cached.for_model, counted)
    return context, cached


def _read_context(
    connection: Connection, asked: Mapping[str, object], *, in_one_piece: bool
) -> Steps[list[Placed] | None]:
    """Return the messages in context in the order of their places: see ``context``.

    They are read from the newest on, in pieces, until those that a summary replaces.
    """
    placed: list[Placed] = []
    first, before = None, _END
    while True:
        piece = yield from _NEWEST_BEFORE.reading(connection, {**asked, "before": before})
        placed += piece
        if first is None:
            summary = next((one for one in piece if one.message.role is Role.SUMMARY), None)
            if summary is not None:
                first = yield from _first_kept(asked, summary)
        if len(piece) < PIECE_ROWS or (first is not None and piece[-1].position <= first):
            break
        if in_one_piece:
            return None
        before = piece[-1].position
    placed.reverse()
    if first is None or placed[0].position == _SYSTEM:
        return placed
    system = yield from _SYSTEM_MESSAGE.reading(connection, asked)
    return [*system, *placed]


def _first_kept(asked: Mapping[str, object], summary: Placed) -> Steps[int]:
    """Return the position of the first message that the summary keeps, itself included."""
    kept_from = summary_of(summary.message).kept_from
    (places,) = yield [(_PLACE, {**asked, "message_id": kept_from})]
    return min(places[0][0], summary.position) if places else summary.position


def _counted_tokens(step_id: StepId | None) -> Steps[int | None]:
    """Return the tokens that the provider counted with the step."""
    if step_id is None:
        return None
    (usages,) = yield [(_USAGE, {"step_id": step_id})]
    usage = usages[0][0] if usages else None
    return usage.prompt_tokens or None if usage is not None else None


def message_ids(connection: Connection, thread_key: str) -> list[MessageId]:
    """Return the ids of the messages in context of a thread, in order, the system message first."""
    asked = {"thread_key": thread_key}
    rows, summaries = ask(connection, (_IDS, asked), (_SUMMARY_PARTS, asked))
    return _ids_in_context([message_id for (message_id,) in rows], summaries)


def message_ids_if_few(thread_key: str) -> Steps[list[MessageId] | None]:
    """Return ``message_ids`` if the thread is short enough for the event loop; else None."""
    asked = {"thread_key": thread_key, "limit": SHORT_THREAD + 1}
    (rows,) = yield [(_FIRST_IDS, asked)]
    if len(rows) > SHORT_THREAD:
        return None
    (summaries,) = yield [(_SUMMARY_PARTS, {"thread_key": thread_key})]
    return _ids_in_context([message_id for (message_id,) in rows], summaries)


def message_ids_of(
    connection: Connection, thread_keys: Sequence[str]
) -> dict[str, list[MessageId]]:
    """Return ``message_ids`` of each of the threads, by one query."""
    rows = connection.execute(_IDS_OF_ALL, {"thread_keys": thread_keys})
    ids: dict[str, list[MessageId]] = {}
    summaries: dict[str, list[Sequence[Any]]] = {}
    for thread_key, message_id, parts in rows:
        ids.setdefault(thread_key, []).append(message_id)
        if parts:
            summaries.setdefault(thread_key, []).append((message_id, parts))
    return {key: _ids_in_context(found, summaries.get(key, ())) for key, found in ids.items()}


def _ids_in_context(
    ids: Sequence[MessageId], summaries: Iterable[Sequence[Any]]
) -> list[MessageId]:
    """Return those of a thread's ids that are in context; ``summaries`` have ids and parts."""
    readable = {one: parts[0] for one, parts in summaries if isinstance(parts[0], SummaryPart)}
    return ids_in_context(ids, readable)


def pending(connection: Connection, thread: Thread) -> PendingApproval | None:
    """Return the approval request of the thread that has no answer."""
    return take_steps(connection, find_pending(connection, thread))


def find_pending(connection: Connection, thread: Thread) -> Steps[PendingApproval | None]:
    """Do the same in steps."""
    (rows,) = yield [(_SINCE_SPOKEN, {"thread_key": thread.key})]
    return pending_approval([message_of(row) for row in _SINCE_SPOKEN.named(connection, rows)])


def pending_after(
    connection: Connection, thread: Thread, context: ThreadContext | None
) -> Steps[PendingApproval | None]:
    """Return the same; ``context`` is the present context of the thread, if it is known."""
    following = () if context is None else context.following
    # A summary may stand for the message with the calls, so that one is read.
    if any(one.role not in FOLLOWING for one in reversed(following)):
        return pending_approval(following)
    return (yield from find_pending(connection, thread))


def answers(connection: Connection, thread: Thread, limit: int) -> list[Message]:
    """Return the clients' answers to approval requests in the thread, newest first."""
    rows = connection.execute(
        with_places(thread.key)
        .where(schema.messages.c.role == Role.APPROVAL)
        .order_by(schema.thread_messages.c.position.desc())
        .limit(limit)
    )
    return [message_of(row) for row in rows.mappings()]


def put_system(connection: Connection, tenant: TenantId, thread: Thread, message: Message) -> None:
    """Add the system message to a thread that has none."""
    changes = Changes(connection)
    _add(changes, tenant, thread, [message], _SYSTEM)
    changes.make()


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
    changes = Changes(connection)
    last = _LAST.value(connection, {"thread_key": thread.key})
    add_after(changes, tenant, thread, messages, last)
    changes.make()


def add_after(
    changes: Changes,
    tenant: TenantId,
    thread: Thread,
    messages: Sequence[Message],
    last: int | None,
) -> None:
    """Let ``append`` be one of the changes; ``last`` is the ``last_position`` of the thread."""
    if messages:
        _add(changes, tenant, thread, messages, (last or _SYSTEM) + 1)


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


def _add(
    changes: Changes, tenant: TenantId, thread: Thread, messages: Sequence[Message], first: int
) -> None:
    """Store the messages and place them from position ``first`` on."""
    rows = [
        {"tenant": tenant, "agent_id": thread.agent_id} | msgspec.structs.asdict(message)
        for message in messages
    ]
    _INSERT_MESSAGES.add_to(changes, rows)
    places = [
        {"thread_key": thread.key, "position": position, "message_id": message.id}
        for position, message in enumerate(messages, first)
    ]
    _INSERT_PLACES.add_to(changes, places)
