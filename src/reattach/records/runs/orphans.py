"""Active runs without an owner, and their takeover by another one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    bindparam,
    exists,
    func,
    select,
    tuple_,
    update,
)

from reattach.domain.ids import RunId, Token
from reattach.records.agents import agents_of
from reattach.records.base import Agent, Conversation, Run
from reattach.records.conversations import conversations_of
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement
from reattach.records.runs import hidden_events
from reattach.records.runs.admission import run_of
from reattach.records.runs.hidden_events import HiddenEvent

_runs, _owners = schema.runs, schema.owners
_agents, _conversations = schema.agents, schema.conversations
_after = select(_runs.c.ordinal).where(_runs.c.id == bindparam("after")).scalar_subquery()
_IS_ORPHAN: Final = schema.ACTIVE & ~exists().where(_owners.c.id == _runs.c.owner)
_ORPHANS: Final[Select[Any]] = (
    select(_runs)
    .where(_IS_ORPHAN, _runs.c.ordinal > func.coalesce(_after, 0))
    .order_by(_runs.c.ordinal)
    .limit(bindparam("most"))
)
ANY_ORPHAN: Final = PreparedStatement(select(_runs.c.id).where(_IS_ORPHAN).limit(1))
_OWNED: Final = select(_runs).where(
    _runs.c.id == bindparam("run_id"), _runs.c.owner == bindparam("held_by"), schema.ACTIVE
)
_AGENTS: Final = select(_agents).where(_agents.c.id.in_(bindparam("ids", expanding=True)))
_CONVERSATIONS: Final = select(_conversations).where(
    _conversations.c.id.in_(bindparam("ids", expanding=True)), _conversations.c.deleted_at.is_(None)
)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """An active run of this process, with the records that its next attempt needs."""

    run: Run
    agent: Agent | None
    """None if it was deleted."""
    conversation: Conversation | None
    """None if it was deleted, or if the run belongs to none."""
    hidden: Sequence[HiddenEvent]
    """The events that its log does not have, in order."""


def orphans(connection: Connection, after: str | None, limit: int) -> list[Run]:
    """Return active runs of all tenants whose owner is not registered, oldest first."""
    found = connection.execute(_ORPHANS, {"after": after, "most": limit})
    return [run_of(row) for row in found.mappings()]


def take_over(
    connection: Connection, claims: Sequence[tuple[RunId, Token]], owner: str, step: int
) -> list[TakenOver]:
    """Make ``owner`` the owner of the active runs that still have their token, and raise it.

    Of several runs, those that another transaction has locked are left out: it may be another
    process that takes over the same runs in another order.
    """
    wanted = select(_runs.c.id).where(tuple_(_runs.c.id, _runs.c.token).in_(claims), schema.ACTIVE)
    skips = len(claims) > 1
    locked = connection.scalars(
        wanted.order_by(_runs.c.id).with_for_update(skip_locked=skips)
    ).all()
    if not locked:
        return []
    taken = (
        update(_runs)
        .where(_runs.c.id.in_(locked))
        .values(token=_runs.c.token + step, owner=owner)
        .returning(_runs)
    )
    return _taken_over(connection, connection.execute(taken).mappings().all())


def owned_run(connection: Connection, run_id: str, owner: str) -> TakenOver | None:
    """Return the active run if ``owner`` owns it."""
    held = connection.execute(_OWNED, {"run_id": run_id, "held_by": owner})
    return next(iter(_taken_over(connection, held.mappings().all())), None)


def _taken_over(connection: Connection, rows: Sequence[RowMapping]) -> list[TakenOver]:
    """Return the runs of the rows, with one query for each kind of record around them."""
    if not rows:
        return []
    runs = [run_of(row) for row in rows]
    agent_ids = {run.thread.agent_id for run in runs}
    conversation_ids = {run.conversation_id for run in runs if run.conversation_id is not None}
    agents = {
        agent.id: agent for agent in agents_of(connection, _rows(connection, _AGENTS, agent_ids))
    }
    conversations: dict[str, Conversation] = {
        conversation.id: conversation
        for conversation in conversations_of(
            connection, _rows(connection, _CONVERSATIONS, conversation_ids)
        )
    }
    hidden = hidden_events.of_runs(connection, [run.id for run in runs])
    return [
        TakenOver(
            run,
            agents.get(run.thread.agent_id),
            conversations.get(run.conversation_id or ""),
            hidden.get(run.id, ()),
        )
        for run in runs
    ]


def _rows(
    connection: Connection, statement: Select[Any], ids: Collection[str]
) -> Sequence[RowMapping]:
    return connection.execute(statement, {"ids": list(ids)}).mappings().all() if ids else ()
