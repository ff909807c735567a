"""Compaction on request, outside of a run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reattach.agent.engine_factory import EngineFactory
from reattach.agent.turns import system_prompt
from reattach.domain.clock import Clock
from reattach.domain.errors import ConversationBusyError, InvalidArgumentError
from reattach.domain.ids import TenantId, new_message_id, new_run_id
from reattach.domain.messages import CompactionStats, Message, Role
from reattach.engine.base import Turn
from reattach.records.base import Agent, Conversation, Thread
from reattach.records.records import Records

TRIGGER = "requested"


async def compact_thread(
    records: Records,
    engine_factory: EngineFactory,
    clock: Clock,
    *,
    tenant: TenantId,
    agent: Agent,
    conversation: Conversation | None,
    asked: Mapping[str, Any],
) -> tuple[str, CompactionStats]:
    """Replace the older part of the conversation's context with a summary, and return the summary.

    ``asked`` are ``compaction_settings`` that take precedence over the agent's. Messages that are
    added meanwhile stay in context. A failure or cancellation changes nothing.

    Raises:
        InvalidArgumentError: There is nothing to leave out, or the summary is not smaller.
        ConversationBusyError: A run is active.
        EngineError: The model made no summary.
    """
    thread = Thread(agent.id, None if conversation is None else conversation.id)
    active = await records.runs.active(tenant, thread)
    if active is not None:
        raise ConversationBusyError(active.id, thread.key)
    model = engine_factory.model(agent, conversation, None)
    compactor = engine_factory.compactor(model, agent, conversation, asked)
    if compactor is None:
        raise InvalidArgumentError(f"The model {model} cannot make summaries. Name another one.")
    context = await records.messages.context(tenant, thread)
    turn = Turn(
        run_id=new_run_id(),  # of no run, but engines need one per turn
        agent_id=agent.id,
        conversation_id=thread.conversation_id,
        model=model,
        system=system_prompt(agent, conversation),
        history=context.for_model,
        input=(),
    )
    compactor.learn_last(replace(turn, counted_tokens=context.counted_tokens))
    window = min(compactor.window_tokens, compactor.tokens(turn))
    cut = compactor.cut(turn, into_tokens=window)
    if cut is None:
        raise InvalidArgumentError("There is nothing to compact in this conversation.")
    made, _ = await compactor.compact(
        turn, cut, TRIGGER, into_tokens=compactor.window_tokens, may_drop=False
    )
    part, stats = made.summary, made.summary.stats
    assert stats is not None
    before, after = stats.context_tokens_before, stats.context_tokens_after
    if before is not None and after is not None and after >= before:
        raise InvalidArgumentError(
            "The summary is not smaller than the messages it would replace. Nothing was changed."
        )
    summary = Message(id=new_message_id(), role=Role.SUMMARY, parts=(part,), created_at=clock.now())
    await records.messages.append(tenant, thread, summary)
    return part.text, stats
