"""The settlement of a run: its end is written to the records exactly once."""

from dataclasses import fields
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, case, func, select, update

from reattach.domain.ids import RunId, TenantId
from reattach.records import threads
from reattach.records.base import Settlement, Step, Thread
from reattach.records.database import schema
from reattach.records.database.columns import Moment
from reattach.records.database.prepared import (
    Changes,
    PreparedInsert,
    PreparedStatement,
    Steps,
)
from reattach.records.runs import timelines
from reattach.records.runs.admission import latest, note_latest
from reattach.records.runs.hidden_events import HAS_ANY, forget
from reattach.records.runs.notifications import RunSettled, changes_with

_STEP_FIELDS: Final = tuple(field.name for field in fields(Step))
_END_FIELDS: Final = (
    "status",
    "stop_reason",
    "completed_at",
    "usage",
    "error",
    "duration_ns",
    "turn_plan",
    "event_count",
    "log_bytes",
)

FIRST_EVENT_AT: Final = func.coalesce(
    schema.runs.c.first_event_at, bindparam("begun_at", type_=Moment)
)
"""The time of the first event of a run, unless an earlier owner has noted it."""

# The statements of every run, built once because building them costs more than running them.
_runs, _agents, _conversations = schema.runs, schema.agents, schema.conversations
_ended = _runs.alias("ended")
# In RETURNING, SQLite gets columns without their tables, so the run is read under another name.
_thread_key = (
    select(_ended.c.thread_key).where(_ended.c.id == bindparam("run_id")).scalar_subquery()
)
_END: Final = PreparedStatement(
    update(_runs)
    .where(_runs.c.id == bindparam("run_id"), schema.ACTIVE)
    .values(
        callback_due_at=case((_runs.c.callback_url.is_not(None), bindparam("at", type_=Moment))),
        first_event_at=FIRST_EVENT_AT,
    )
    .returning(
        _runs.c.tenant,
        _runs.c.agent_id,
        _runs.c.conversation_id,
        _runs.c.token,
        HAS_ANY,
        # While the run is active, nothing else adds messages to its thread.
        threads.last_position(_thread_key).scalar_subquery().label("last"),
    ),
    *_END_FIELDS,
)
_INSERT_STEPS: Final = PreparedInsert(schema.steps, "tenant", *_STEP_FIELDS)
_NOTE_ON_AGENT: Final = PreparedStatement(
    note_latest(_agents.c.last_run_completion), "last_stop_reason", "last_run_duration_ms"
)
_completion, _message = _conversations.c.last_run_completion, _conversations.c.last_message_at
_NOTE_ON_CONVERSATION: Final = {
    has_messages: PreparedStatement(
        update(_conversations)
        .where(_conversations.c.id == bindparam("row_id"))
        .values({column: latest(column) for column in columns})
    )
    for has_messages, columns in ((False, [_completion]), (True, [_completion, _message]))
}


def settle(connection: Connection, run_id: RunId, settlement: Settlement) -> Steps[bool]:
    """Write the end of an active run, and give its messages the run's id.

    Returns False and changes nothing if the run is not active.
    """
    log = settlement.log
    values = {
        "status": settlement.status,
        "stop_reason": settlement.stop_reason,
        "completed_at": settlement.completed_at,
        "usage": settlement.usage,
        "error": settlement.error,
        "duration_ns": settlement.duration_ns,
        "turn_plan": None,
        "event_count": None if log is None else log.event_count,
        "log_bytes": None if log is None else log.size_bytes,
        "begun_at": None if log is None else log.first_event_at,
    }
    asked = {"run_id": run_id, "at": settlement.completed_at, **values}
    (ended,) = yield [(_END, asked)]
    if not ended:
        return False
    ((tenant, agent_id, conversation_id, token, has_hidden_events, last),) = ended
    thread = Thread(agent_id, conversation_id)
    messages = [msgspec.structs.replace(message, run_id=run_id) for message in settlement.messages]
    if has_hidden_events:
        forget(connection, run_id)
    changes = changes_with(connection, RunSettled(run_id))
    threads.add_after(changes, tenant, thread, messages, last)
    _add_steps(changes, tenant, settlement)
    _note_end(changes, thread, settlement, has_messages=bool(messages))
    if log is not None and log.commits is not None:
        timelines.add_kept(changes, run_id, token, log.commits)
    changes.make()
    return True


def _add_steps(changes: Changes, tenant: TenantId, settlement: Settlement) -> None:
    rows = [
        {"tenant": tenant} | {name: getattr(step, name) for name in _STEP_FIELDS}
        for step in settlement.steps
    ]
    _INSERT_STEPS.add_to(changes, rows)


def _note_end(
    changes: Changes, thread: Thread, settlement: Settlement, *, has_messages: bool
) -> None:
    """Set the last run of its agent and conversation, and the time of its messages.

    Later ones stay.
    """
    at = settlement.completed_at
    duration_ns = settlement.duration_ns
    values = {
        "last_stop_reason": settlement.stop_reason,
        "last_run_duration_ms": None if duration_ns is None else duration_ns // 1_000_000,
    }
    changes.add(_NOTE_ON_AGENT, {"row_id": thread.agent_id, "at": at, **values})
    if thread.conversation_id is not None:
        note = _NOTE_ON_CONVERSATION[has_messages]
        changes.add(note, {"row_id": thread.conversation_id, "at": at})
