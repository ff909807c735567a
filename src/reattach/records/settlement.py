"""How the end of a run gets into the records, once."""

from dataclasses import fields

import msgspec
from sqlalchemy import case, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from reattach.ids import RunId, TenantId
from reattach.records import schema, threads
from reattach.records.admission import note_message
from reattach.records.base import Settlement, Step, Thread
from reattach.records.columns import Moment
from reattach.records.wakes import RunSettled, tell

_STEP_FIELDS = tuple(field.name for field in fields(Step))


async def settle(connection: AsyncConnection, run_id: RunId, settlement: Settlement) -> bool:
    """Write how an active run ended; False, and no change, if it is not active.

    All of it is part of the connection's transaction. The messages get the run's id.
    """
    runs = schema.runs
    ended = await connection.execute(
        update(runs)
        .where(runs.c.id == run_id, schema.ACTIVE)
        .values(
            status=settlement.status,
            stop_reason=settlement.stop_reason,
            completed_at=settlement.completed_at,
            usage=settlement.usage,
            error=settlement.error,
            duration_ns=settlement.duration_ns,
            callback_due_at=case(
                (runs.c.callback_url.is_not(None), literal(settlement.completed_at, Moment))
            ),
        )
    )
    if not ended.rowcount:
        return False
    found = await connection.execute(
        select(runs.c.tenant, runs.c.agent_id, runs.c.conversation_id).where(runs.c.id == run_id)
    )
    tenant, agent_id, conversation_id = found.one()
    thread = Thread(agent_id, conversation_id)
    messages = [msgspec.structs.replace(message, run_id=run_id) for message in settlement.messages]
    await threads.append(connection, tenant, thread, messages)
    await _insert_steps(connection, tenant, settlement)
    await _tell_agent(connection, thread, settlement)
    if messages:
        await note_message(connection, thread, settlement.completed_at)
    await tell(connection, RunSettled(run_id))
    return True


async def _insert_steps(
    connection: AsyncConnection, tenant: TenantId, settlement: Settlement
) -> None:
    if settlement.steps:
        rows = [
            {"tenant": tenant} | {name: getattr(step, name) for name in _STEP_FIELDS}
            for step in settlement.steps
        ]
        await connection.execute(insert(schema.steps), rows)


async def _tell_agent(connection: AsyncConnection, thread: Thread, settlement: Settlement) -> None:
    """Note the run on its agent and conversation, unless a later one is noted there."""
    at = settlement.completed_at
    duration_ns = settlement.duration_ns
    agents = schema.agents
    await connection.execute(
        update(agents)
        .where(
            agents.c.id == thread.agent_id,
            or_(agents.c.last_run_completion.is_(None), agents.c.last_run_completion <= at),
        )
        .values(
            last_run_completion=at,
            last_stop_reason=settlement.stop_reason,
            last_run_duration_ms=None if duration_ns is None else duration_ns // 1_000_000,
        )
    )
    if thread.conversation_id is not None:
        table = schema.conversations
        await connection.execute(
            update(table)
            .where(
                table.c.id == thread.conversation_id,
                or_(table.c.last_run_completion.is_(None), table.c.last_run_completion <= at),
            )
            .values(last_run_completion=at)
        )
