"""The admission of runs: at most one for a key, and at most one active run in a thread.

Unique indexes guarantee both. The queries before the insert find the reason of a refusal; when
another process inserts in between, the insert fails and the caller tries again.

A thread that waits for an approval accepts only the answer. That is checked after the insert has
made this run the only active one of the thread, because then no other run can answer.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from msgspec import structs
from sqlalchemy import (
    Case,
    Column,
    ColumnElement,
    Connection,
    Executable,
    Update,
    bindparam,
    case,
    exists,
    insert,
    or_,
    select,
    update,
)

from reattach.domain.approvals import (
    PendingApproval,
    answered_ids,
    has_answer,
    resolve_input,
    same_answer,
)
from reattach.domain.errors import (
    AnswerRefusedError,
    ConversationBusyError,
    ConversationKeyTakenError,
    NoPendingApprovalError,
    NotFoundError,
    OtidConflictError,
    ReattachError,
)
from reattach.domain.ids import TenantId
from reattach.domain.limits.requests import ANSWERS_LOOKED_AT
from reattach.domain.messages import input_text
from reattach.records import lookup, threads
from reattach.records.base import RequestKey, Run, RunKnown, Thread
from reattach.records.conversations import insert_conversation
from reattach.records.database import schema
from reattach.records.database.columns import Moment
from reattach.records.database.prepared import (
    Changes,
    PreparedInsert,
    PreparedStatement,
    Query,
    Row,
    Rows,
    Steps,
    take_steps,
)
from reattach.records.runs import retries
from reattach.records.runs.created import RunCreated
from reattach.records.runs.openings import Opening, find_conversation, insert_key


def note_latest(column: Column[Any]) -> Update:
    """Set the time in ``column`` of the row ``row_id`` to ``at``, unless it has a later one."""
    row = update(column.table).where(column.table.c.id == bindparam("row_id"), _is_latest(column))
    return row.values({column: bindparam("at")})


def latest(column: Column[Any]) -> Case[Any]:
    """Return the time ``at``, or that in ``column`` if it is later."""
    return case((_is_latest(column), bindparam("at", type_=Moment)), else_=column)


def _is_latest(column: Column[Any]) -> ColumnElement[bool]:
    return or_(column.is_(None), column <= bindparam("at"))


_COLUMNS = tuple(name for name in Run.__struct_fields__ if name in schema.runs.c)

# The statements of every send, built once because building them costs more than running them.
_runs, _keys, _conversations = schema.runs, schema.request_keys, schema.conversations
_KNOWN: Final = PreparedStatement(
    select(_keys.c.payload_sha256, _runs)
    .join(_runs, _runs.c.id == _keys.c.run_id)
    .where(_keys.c.tenant == bindparam("tenant"), _keys.c.digest == bindparam("digest"))
)
_has_active = (
    exists().where(_runs.c.thread_key == bindparam("row_id"), schema.ACTIVE).label("has_active")
)
_OWNER: Final = {
    is_named: PreparedStatement(
        lookup.by_id(table).with_only_columns(owner, _has_active.label("has_active"))
    )
    for is_named, table, owner in (
        (True, _conversations, _conversations.c.agent_id),
        (False, schema.agents, schema.agents.c.id),
    )
}
"""The agent of the thread of a run, and whether a run of the thread is active."""
_ACTIVE: Final = PreparedStatement(
    select(_runs).where(_runs.c.thread_key == bindparam("thread_key"), schema.ACTIVE)
)
_PLACE: Final = ("agent_id", "conversation_id", "thread_key", "callback_host", "input_text")
_INSERT_RUN: Final = PreparedStatement(insert(_runs), *dict.fromkeys((*_COLUMNS, *_PLACE)))
_INSERT_KEY: Final = PreparedStatement(
    insert(_keys), "tenant", "digest", "payload_sha256", "run_id"
)
_INSERT_OTIDS: Final = PreparedInsert(schema.run_otids, "run_id", "otid", "tenant")
_NOTE_MESSAGE: Final = PreparedStatement(note_latest(_conversations.c.last_message_at))


def run_of(row: Row) -> Run:
    thread = Thread(row["agent_id"], row["conversation_id"])
    return Run(thread=thread, **{name: row[name] for name in _COLUMNS})


def admit(
    connection: Connection,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    otids: Sequence[str],
    *,
    digest: retries.RequestDigest | None = None,
    opening: Opening | None = None,
    repeated: bool = False,
    pending: Callable[[Connection], Steps[PendingApproval | None]],
) -> Steps[RunCreated | RunKnown]:
    """Create the run unless its key is known: see ``Runs.create``.

    ``approvals.resolve_input`` completes the input of a run that answers an approval request.
    ``pending`` returns the one that the thread waits for once its run is created.
    """
    if key is not None and not key.otids:
        key = None
    create = partial(
        _admit, connection, tenant, run, key, otids, digest=digest, opening=opening, pending=pending
    )
    if not repeated:
        return (yield from create())
    # The earlier attempt may land before any of the queries, and its run is this one.
    if (own := _find_own(connection, tenant, run)) is not None:
        return own
    try:
        outcome = yield from create()
    except ReattachError:
        if (own := _find_own(connection, tenant, run)) is None:
            raise
        return own
    return RunCreated(outcome.run) if outcome.run.id == run.id else outcome


def _find_own(connection: Connection, tenant: TenantId, run: Run) -> RunCreated | None:
    """Return the run itself if an earlier attempt has created it."""
    row = lookup.find(connection, schema.runs, tenant, run.id)
    return None if row is None else RunCreated(run_of(row))


def _admit(
    connection: Connection,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    otids: Sequence[str],
    *,
    digest: retries.RequestDigest | None,
    opening: Opening | None,
    pending: Callable[[Connection], Steps[PendingApproval | None]],
) -> Steps[RunCreated | RunKnown]:
    known, thread_rows = yield from _look_up(
        connection, tenant, run, key, digest=digest, opening=opening
    )
    if known is not None:
        return RunKnown(known)
    active = yield from _active_in(connection, run.thread, thread_rows)
    if active is not None:
        # Another process may have committed the key's own run since the query above.
        known = yield from _find_known(connection, tenant, key)
        if known is None and same_answer(active.input, run.input) and has_answer(run.input):
            known = active
        if known is not None:
            return RunKnown(known)
        raise ConversationBusyError(active.id, run.thread.key)
    answered = None
    if has_answer(run.input):
        answered = yield from threads.find_pending(connection, run.thread)
        try:
            run = structs.replace(run, input=resolve_input(run.input, answered))
        except AnswerRefusedError:
            known = _find_answered(connection, tenant, run)
            if known is None:
                raise
            return RunKnown(known)
    changes = Changes(connection)
    _add_run(changes, tenant, run)
    names = [] if digest is None else retries.names_of(digest)
    _add_keys(changes, tenant, run, key, [*otids, *names])
    if run.conversation_id is not None:
        changes.add(_NOTE_MESSAGE, {"row_id": run.conversation_id, "at": run.created_at})
    changes.make()
    found = yield from pending(connection)
    if found != answered:
        raise NoPendingApprovalError if found is None else found.error()
    return RunCreated(run)


def _look_up(
    connection: Connection,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    *,
    digest: retries.RequestDigest | None,
    opening: Opening | None,
) -> Steps[tuple[Run | None, Rows]]:
    """Return the run that the request repeats, if any, and the rows of ``_thread_query``.

    The conversation of a request that repeats nothing is opened before its thread is looked up.
    """
    thread_query = _thread_query(tenant, run.thread)
    if key is not None and digest is None and opening is None:
        key_rows, thread_rows = yield [_key_query(tenant, key), thread_query]
        known = yield from _find_known(connection, tenant, key, key_rows)
        return known, thread_rows
    known = yield from _find_known(connection, tenant, key)
    if known is None and digest is not None:
        row = yield from retries.find_repeated(connection, tenant, digest, run.created_at)
        known = None if row is None else run_of(row)
    if known is None and opening is not None:
        _open(connection, tenant, opening)
    (thread_rows,) = yield [thread_query]
    return known, thread_rows


def _open(connection: Connection, tenant: TenantId, opening: Opening) -> None:
    """Create the conversation of a new run. Raises ConversationKeyTakenError."""
    key, conversation = opening.key, opening.conversation
    if key is not None:
        taken = find_conversation(connection, tenant, key)
        if taken is not None and taken != opening.replaces:
            raise ConversationKeyTakenError(taken)
    if lookup.find(connection, schema.agents, tenant, conversation.agent_id) is None:
        raise NotFoundError("Agent not found")
    insert_conversation(connection, tenant, conversation, opening.system_message)
    thread = Thread(conversation.agent_id, conversation.id)
    if opening.source is not None:
        lookup.require_thread(connection, tenant, opening.source)
        threads.copy_places(connection, opening.source, thread, opening.up_to)
    threads.append(connection, tenant, thread, opening.earlier)
    if key is not None:
        insert_key(connection, tenant, key, conversation.id, opening.replaces)


def _find_answered(connection: Connection, tenant: TenantId, run: Run) -> Run | None:
    """Return the run that received the same answer before, if the thread still has it."""
    ids = answered_ids(run.input)
    for answer in threads.answers(connection, run.thread, ANSWERS_LOOKED_AT):
        if answer.run_id is None or not answered_ids([answer]) & ids:
            continue
        row = lookup.find(connection, schema.runs, tenant, answer.run_id)
        if row is not None and same_answer(row["input"], run.input):
            return run_of(row)
    return None


def _add_keys(
    changes: Changes,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    otids: Sequence[str],
) -> None:
    if key is not None:
        values = {
            "tenant": tenant,
            "digest": _digest(key),
            "payload_sha256": key.payload_sha256,
            "run_id": run.id,
        }
        changes.add(_INSERT_KEY, values)
    rows = [{"run_id": run.id, "otid": otid, "tenant": tenant} for otid in dict.fromkeys(otids)]
    _INSERT_OTIDS.add_to(changes, rows)


def known_run(connection: Connection, tenant: TenantId, key: RequestKey) -> Run | None:
    """Return the run of the key. Raises OtidConflictError if it came with another payload."""
    return take_steps(connection, _find_known(connection, tenant, key)) if key.otids else None


def _find_known(
    connection: Connection,
    tenant: TenantId,
    key: RequestKey | None,
    rows: Rows | None = None,
) -> Steps[Run | None]:
    """Return the run of the key; ``rows`` are those of ``_key_query`` if they were read."""
    if key is None:
        return None
    if rows is None:
        (rows,) = yield [_key_query(tenant, key)]
    if not rows:
        return None
    row = _KNOWN.named(connection, rows)[0]
    if row["payload_sha256"] != key.payload_sha256:
        raise OtidConflictError(row["id"])
    return run_of(row)


def _key_query(tenant: TenantId, key: RequestKey) -> Query:
    return _KNOWN, {"tenant": tenant, "digest": _digest(key)}


def _thread_query(tenant: TenantId, thread: Thread) -> Query:
    is_named = thread.conversation_id is not None
    return _OWNER[is_named], {"tenant": tenant, "row_id": thread.key}


def _active_in(connection: Connection, thread: Thread, rows: Rows) -> Steps[Run | None]:
    """Return the active run of the thread by the rows of ``_thread_query``.

    Raises NotFoundError if the tenant lacks the thread.
    """
    agent_id, has_active = rows[0] if rows else (None, False)
    if agent_id != thread.agent_id:
        raise lookup.thread_not_found(thread)
    return (yield from _find_active(connection, thread)) if has_active else None


def active_run(connection: Connection, thread: Thread) -> Run | None:
    """Return the one run of the thread that has not ended."""
    return take_steps(connection, _find_active(connection, thread))


def _find_active(connection: Connection, thread: Thread) -> Steps[Run | None]:
    (rows,) = yield [(_ACTIVE, {"thread_key": thread.key})]
    return run_of(_ACTIVE.named(connection, rows)[0]) if rows else None


def one_run(connection: Connection, statement: Executable, **values: object) -> Run | None:
    """Return the run of the statement's only row; None if there is no row."""
    row = connection.execute(statement, values).mappings().one_or_none()
    return None if row is None else run_of(row)


def _add_run(changes: Changes, tenant: TenantId, run: Run) -> None:
    if run.tenant != tenant:
        raise ValueError("A run is created for the tenant in its own field")
    values = {name: getattr(run, name) for name in _COLUMNS}
    place = {
        "agent_id": run.thread.agent_id,
        "conversation_id": run.thread.conversation_id,
        "thread_key": run.thread.key,
        "callback_host": run.callback_host,
        "input_text": input_text(run.input),
    }
    changes.add(_INSERT_RUN, values | place)


def _digest(key: RequestKey) -> str:
    # As JSON, because two tuples joined by a separator could give the same text.
    return hashlib.sha256(json.dumps(key.otids).encode()).hexdigest()
