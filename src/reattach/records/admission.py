"""How a request becomes a run: at most one for a key, and at most one active in a thread.

Both are unique indexes. The look before the insert is there to say what is in the way; where
another process gets in between, the insert fails and a second look says it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields

from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.errors import ConversationBusyError, OtidConflictError
from reattach.ids import TenantId
from reattach.records import lookup, schema
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

    Raises OtidConflictError if the key came with another payload; NotFoundError if the thread
    is not there; ConversationBusyError if a run of it is active.
    """
    digest = _digest(key) if key is not None and key.otids else None
    if key is not None and digest is not None:
        known = await _known(connection, tenant, digest, key.payload_sha256)
        if known is not None:
            return RunKnown(known)
    await lookup.require_thread(connection, tenant, run.thread)
    await _refuse_second(connection, run.thread)
    await _insert(connection, tenant, run)
    if key is not None and digest is not None:
        await connection.execute(
            insert(schema.request_keys).values(
                tenant=tenant, digest=digest, payload_sha256=key.payload_sha256, run_id=run.id
            )
        )
    if otids:
        rows = [{"run_id": run.id, "otid": otid, "tenant": tenant} for otid in dict.fromkeys(otids)]
        await connection.execute(insert(schema.run_otids), rows)
    await note_message(connection, run.thread, run.created_at)
    return RunCreated(run)


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
    connection: AsyncConnection, tenant: TenantId, digest: str, payload_sha256: str
) -> Run | None:
    keys = schema.request_keys
    found = await connection.execute(
        select(keys.c.payload_sha256, schema.runs)
        .join(schema.runs, schema.runs.c.id == keys.c.run_id)
        .where(keys.c.tenant == tenant, keys.c.digest == digest)
    )
    row = found.mappings().one_or_none()
    if row is None:
        return None
    if row["payload_sha256"] != payload_sha256:
        raise OtidConflictError(row["id"])
    return run_of(row)


async def _refuse_second(connection: AsyncConnection, thread: Thread) -> None:
    runs = schema.runs
    active = await connection.scalar(
        select(runs.c.id).where(runs.c.thread_key == thread.key, schema.ACTIVE)
    )
    if active is not None:
        raise ConversationBusyError(active, thread.key)


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
