"""How a request becomes a run: at most one for a key, and at most one active in a thread.

Both are unique indexes. The looks before the insert are there to say what is in the way; where
another process gets in between, the insert fails and another look says it.

A thread that waits for an approval takes nothing but the answer. That is looked at once the insert
has made this run the thread's only one, since nothing else can then change what it waits for.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace

from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.approvals import answered_ids, has_answer, resolved, same_answer
from reattach.errors import (
    AnswerRefusedError,
    ConversationBusyError,
    NoPendingApprovalError,
    OtidConflictError,
)
from reattach.ids import TenantId
from reattach.limits import ANSWERS_LOOKED_AT
from reattach.records import lookup, schema, threads
from reattach.records.base import RequestKey, Run, RunCreated, RunKnown, Thread

_COLUMNS = tuple(field.name for field in fields(Run) if field.name in schema.runs.c)


def run_of(row: RowMapping) -> Run:
    thread = Thread(row["agent_id"], row["conversation_id"])
    return Run(thread=thread, **{name: row[name] for name in _COLUMNS})


async def admit(
    connection: AsyncConnection,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    otids: Sequence[str],
) -> RunCreated | RunKnown:
    """Create the run unless its key is known, in the transaction of the connection.

    The run's input is completed by what its answers mean: ``approvals.resolved``.
    Raises OtidConflictError if the key came with another payload; NotFoundError if the thread
    is not there; ConversationBusyError if a run of it is active; PendingApprovalError and
    AnswerRefusedError if it waits for something else than the input.
    """
    if key is not None and not key.otids:
        key = None
    known = await _known(connection, tenant, key)
    if known is not None:
        return RunKnown(known)
    await lookup.require_thread(connection, tenant, run.thread)
    active = await active_run(connection, run.thread)
    if active is not None:
        # Each look sees what was committed before it: the run may be the key's own.
        known = await _known(connection, tenant, key)
        if known is None and same_answer(active.input, run.input) and has_answer(run.input):
            known = active
        if known is not None:
            return RunKnown(known)
        raise ConversationBusyError(active.id, run.thread.key)
    pending = None
    if has_answer(run.input):
        pending = await threads.pending(connection, run.thread)
        try:
            run = replace(run, input=resolved(run.input, pending))
        except AnswerRefusedError:
            known = await _answered(connection, tenant, run)
            if known is None:
                raise
            return RunKnown(known)
    await _insert(connection, tenant, run)
    found = await threads.pending(connection, run.thread)
    if found != pending:
        raise NoPendingApprovalError if found is None else found.error()
    await _insert_keys(connection, tenant, run, key, otids)
    await note_message(connection, run.thread, run.created_at)
    return RunCreated(run)


async def _answered(connection: AsyncConnection, tenant: TenantId, run: Run) -> Run | None:
    """The run that had the same answer before, if the thread keeps it."""
    ids = answered_ids(run.input)
    for answer in await threads.answers(connection, run.thread, ANSWERS_LOOKED_AT):
        if answer.run_id is None or not answered_ids([answer]) & ids:
            continue
        row = await lookup.find(connection, schema.runs, tenant, answer.run_id)
        if row is not None and same_answer(row["input"], run.input):
            return run_of(row)
    return None


async def _insert_keys(
    connection: AsyncConnection,
    tenant: TenantId,
    run: Run,
    key: RequestKey | None,
    otids: Sequence[str],
) -> None:
    if key is not None:
        await connection.execute(
            insert(schema.request_keys).values(
                tenant=tenant,
                digest=_digest(key),
                payload_sha256=key.payload_sha256,
                run_id=run.id,
            )
        )
    if otids:
        rows = [{"run_id": run.id, "otid": otid, "tenant": tenant} for otid in dict.fromkeys(otids)]
        await connection.execute(insert(schema.run_otids), rows)


async def note_message(connection: AsyncConnection, thread: Thread, at: object) -> None:
    """Remember when the conversation had its last message, if this one is later."""
    table = schema.conversations
    if thread.conversation_id is not None:
        await connection.execute(
            update(table)
            .where(
                table.c.id == thread.conversation_id,
                or_(table.c.last_message_at.is_(None), table.c.last_message_at < at),
            )
            .values(last_message_at=at)
        )


async def _known(
    connection: AsyncConnection, tenant: TenantId, key: RequestKey | None
) -> Run | None:
    if key is None:
        return None
    keys = schema.request_keys
    found = await connection.execute(
        select(keys.c.payload_sha256, schema.runs)
        .join(schema.runs, schema.runs.c.id == keys.c.run_id)
        .where(keys.c.tenant == tenant, keys.c.digest == _digest(key))
    )
    row = found.mappings().one_or_none()
    if row is None:
        return None
    if row["payload_sha256"] != key.payload_sha256:
        raise OtidConflictError(row["id"])
    return run_of(row)


async def active_run(connection: AsyncConnection, thread: Thread) -> Run | None:
    """The one run of the thread that has not ended."""
    runs = schema.runs
    found = await connection.execute(
        select(runs).where(runs.c.thread_key == thread.key, schema.ACTIVE)
    )
    row = found.mappings().one_or_none()
    return None if row is None else run_of(row)


async def _insert(connection: AsyncConnection, tenant: TenantId, run: Run) -> None:
    if run.tenant != tenant:
        raise ValueError("A run is created for the tenant that it names")
    values = {name: getattr(run, name) for name in _COLUMNS}
    place = {
        "agent_id": run.thread.agent_id,
        "conversation_id": run.thread.conversation_id,
        "thread_key": run.thread.key,
    }
    await connection.execute(insert(schema.runs), place | values)


def _digest(key: RequestKey) -> str:
    # The tuple as JSON: joined by a separator, two tuples could be one text.
    return hashlib.sha256(json.dumps(key.otids).encode()).hexdigest()
