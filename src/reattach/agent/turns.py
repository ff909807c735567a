"""What is asked of an engine: a turn, made from an agent, its conversation and a send."""

from collections.abc import Sequence
from dataclasses import dataclass

from reattach.agent.model_settings import model_settings
from reattach.domain.approvals import has_answer, pending_approval
from reattach.domain.messages import Message, Role
from reattach.domain.prompt import Skill, blocks_in, compile_system, with_skills
from reattach.engine.base import ClientTool, ModelSettings, Turn
from reattach.records.base import Agent, Conversation, Run, ThreadContext


@dataclass(frozen=True, slots=True)
class Overrides:
    """What one send asks for, instead of what the agent has or beside it."""

    model: str | None = None
    system: str | None = None
    max_steps: int = 50
    client_tools: tuple[ClientTool, ...] = ()
    skills: tuple[Skill, ...] = ()


def make_turn(
    run: Run,
    agent: Agent,
    conversation: Conversation | None,
    context: ThreadContext,
    overrides: Overrides,
) -> Turn:
    """The turn of ``run``. The agent's memory blocks reach the model in the system prompt.

    Answers to approval requests are left out: what they say stands in the returns of tools that
    follow them, and in the calls that are due.
    """
    pending = pending_approval(context.messages) if has_answer(run.input) else None
    system = overrides.system or system_prompt(agent, conversation)
    return Turn(
        run_id=run.id,
        agent_id=agent.id,
        conversation_id=run.thread.conversation_id,
        model=run.model or "",
        system=with_skills(system, overrides.skills),
        history=told(context.messages),
        input=[message for message in run.input if message.role is not Role.APPROVAL],
        max_steps=overrides.max_steps,
        settings=settings_of(agent, conversation),
        client_tools=overrides.client_tools,
        due=[] if pending is None else pending.due(run.input),
        counted_tokens=context.counted_tokens,
    )


def system_prompt(agent: Agent, conversation: Conversation | None) -> str:
    """The system prompt of the conversation as it is now; None is the default one."""
    isolated = () if conversation is None else conversation.isolated_blocks
    blocks = blocks_in(agent.blocks, isolated)
    return compile_system(
        agent.system,
        blocks,
        recompiled_at=max([agent.updated_at, *(block.updated_at for block in blocks)]),
        agent_id=agent.id,
        conversation_id=None if conversation is None else conversation.id,
    )


def told(messages: Sequence[Message]) -> list[Message]:
    """Those of the messages in context that the model is told, the system prompt aside."""
    system, approval = Role.SYSTEM, Role.APPROVAL
    return [one for one in messages if one.role is not system and one.role is not approval]


def settings_of(agent: Agent, conversation: Conversation | None) -> ModelSettings:
    """How the model is to answer: as the conversation says, else as its agent does."""
    settings = dict(agent.model_settings or {})
    if conversation is not None:
        settings |= conversation.model_settings or {}
    return model_settings(settings)
