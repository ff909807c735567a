"""The turn for an engine, built from an agent, its conversation and a send."""

from dataclasses import dataclass
from typing import Self

import msgspec

from reattach.agent.model_settings import model_settings
from reattach.domain.approvals import has_answer, pending_approval
from reattach.domain.messages import Role
from reattach.domain.prompt import Skill, blocks_in, compile_system, with_skills
from reattach.engine.base import ClientTool, ModelSettings, Turn
from reattach.records.base import Agent, Conversation, Run
from reattach.records.contexts.contexts import ThreadContext


@dataclass(frozen=True, slots=True)
class Overrides:
    """The parts of a send that replace or extend the agent's settings."""

    model: str | None = None
    system: str | None = None
    max_steps: int = 50
    client_tools: tuple[ClientTool, ...] = ()
    skills: tuple[Skill, ...] = ()
    without_tools: bool = False
    """Whether the model gets none of the agent's own tools."""


class TurnPlan(msgspec.Struct, frozen=True):
    """The parts of a turn that stay the same for its whole run, whoever answers it.

    The agent may change meanwhile; a continued answer must not get another system prompt.
    """

    system: str
    """The system prompt, memory blocks and skills included."""
    settings: ModelSettings
    max_steps: int
    client_tools: tuple[ClientTool, ...]
    tools: dict[str, bool | None]
    """The agent's tools: see ``Agent.tools``."""

    @classmethod
    def of(cls, agent: Agent, conversation: Conversation | None, overrides: Overrides) -> Self:
        """Return the plan for a send to the agent's conversation."""
        system = overrides.system or system_prompt(agent, conversation)
        return cls(
            system=with_skills(system, overrides.skills),
            settings=settings_of(agent, conversation),
            max_steps=overrides.max_steps,
            client_tools=overrides.client_tools,
            tools={} if overrides.without_tools else dict(agent.tools),
        )


def make_turn(run: Run, context: ThreadContext, plan: TurnPlan) -> Turn:
    """Build the turn of ``run``.

    Answers to approval requests are left out: the returns that follow them and the due calls carry
    their content.
    """
    pending = pending_approval(context.messages) if has_answer(run.input) else None
    return Turn(
        run_id=run.id,
        agent_id=run.thread.agent_id,
        conversation_id=run.thread.conversation_id,
        model=run.model or "",
        system=plan.system,
        history=context.for_model,
        input=[message for message in run.input if message.role is not Role.APPROVAL],
        max_steps=plan.max_steps,
        settings=plan.settings,
        client_tools=plan.client_tools,
        due=[] if pending is None else pending.due(run.input),
        counted_tokens=context.counted_tokens,
    )


def system_prompt(agent: Agent, conversation: Conversation | None) -> str:
    """Return the current system prompt of the conversation; None is the default one."""
    isolated = () if conversation is None else conversation.isolated_blocks
    blocks = blocks_in(agent.blocks, isolated)
    return compile_system(
        agent.system,
        blocks,
        recompiled_at=max([agent.updated_at, *(block.updated_at for block in blocks)]),
        agent_id=agent.id,
        conversation_id=None if conversation is None else conversation.id,
    )


def settings_of(agent: Agent, conversation: Conversation | None) -> ModelSettings:
    """Return the model settings of the conversation, else of its agent."""
    settings = dict(agent.model_settings or {})
    if conversation is not None:
        settings |= conversation.model_settings or {}
    return model_settings(settings)
