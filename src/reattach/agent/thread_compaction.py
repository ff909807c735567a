"""Compaction that somebody asks for, outside of any run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reattach.agent.engine_factory import EngineFactory
from reattach.agent.turns import system_prompt, told
from reattach.domain.clock import Clock
from reattach.domain.errors import ConversationBusyError, InvalidArgumentError
from reattach.domain.ids import TenantId, new_message_id, new_run_id
from reattach.domain.messages import CompactionStats, Message, Role, SummaryPart
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
    """Let a summary take the place of the older part of the conversation, and return it.

    ``asked`` are ``compaction_settings`` that go before the agent's own. Whatever is added to the
    conversation meanwhile stays in context. A failure or a cancellation changes nothing. Raises
    InvalidArgumentError if there is nothing to leave out or the summary is no smaller,
    ConversationBusyError while a run is active, and EngineError if the model makes no summary.
    """
    thread = Thread(agent.id, None if conversation is None else conversation.id)
    active = await records.runs.active(tenant, thread)
    if active is not None:
        raise ConversationBusyError(active.id, thread.key)
    model = engine_factory.model(agent, conversation, None)
    compactor = engine_factory.compactor(model, agent, conversation, asked)
    if compactor is None:
        raise InvalidArgumentError(f"The model {model} makes no summaries; name another one.")
    context = await records.messages.context(tenant, thread)
    turn = Turn(
        run_id=new_run_id(),  # of no run: engines tell turns apart by it
        agent_id=agent.id,
        conversation_id=thread.conversation_id,
        model=model,
        system=system_prompt(agent, conversation),
        history=told(context.messages),
        input=(),
    )
    compactor.learn_last(replace(turn, counted_tokens=context.counted_tokens))
    window = min(compactor.window_tokens, compactor.tokens(turn))
    cut = compactor.cut(turn, into_tokens=window)
    if cut is None:
        raise InvalidArgumentError("There is nothing to compact in this conversation.")
    made, _ = await compactor.compacted(
        turn, cut, TRIGGER, into_tokens=compactor.window_tokens, may_drop=False
    )
    before, after = made.stats.context_tokens_before, made.stats.context_tokens_after
    if before is not None and after is not None and after >= before:
        raise InvalidArgumentError(
            "The summary is not smaller than what it would stand for; nothing was changed."
        )
    assert isinstance(made.kept_from, str)
    part = SummaryPart(made.summary, made.kept_from, made.stats)
    summary = Message(id=new_message_id(), role=Role.SUMMARY, parts=(part,), created_at=clock.now())
    await records.messages.append(tenant, thread, summary)
    return made.summary, made.stats
