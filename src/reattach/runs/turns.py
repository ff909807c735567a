"""What is asked of an engine: a turn, made from an agent, its conversation and a send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reattach.approvals import has_answer, pending_approval
from reattach.engine.base import ClientTool, ModelSettings, Turn
from reattach.messages import Message, Role
from reattach.prompt import Skill, compile_system, with_skills
from reattach.records.base import Agent, Conversation, Run

_UNTOLD = frozenset({Role.SYSTEM, Role.APPROVAL})


@dataclass(frozen=True, slots=True)
class Overrides:
    """What one send asks for, instead of what the agent has or beside it."""

    model: str | None = None
    system: str | None = None
    max_steps: int = 50
    client_tools: tuple[ClientTool, ...] = ()
    skills: tuple[Skill, ...] = ()


def chosen_model(
    agent: Agent, conversation: Conversation | None, overrides: Overrides, default: str | None
) -> str | None:
    """The handle to answer with: the send's, else the conversation's, else the agent's."""
    return (
        overrides.model or (conversation.model if conversation else None) or agent.model or default
    )


def make_turn(
    run: Run,
    agent: Agent,
    conversation: Conversation | None,
    history: Sequence[Message],
    overrides: Overrides,
) -> Turn:
    """The turn of ``run``. The agent's memory blocks reach the model in the system prompt.

    Answers to approval requests are left out: what they say stands in the returns of tools that
    follow them, and in the calls that are due.
    """
    pending = pending_approval(history) if has_answer(run.input) else None
    settings = dict(agent.model_settings or {})
    if conversation is not None:
        settings |= conversation.model_settings or {}
    system = overrides.system or compile_system(agent.system, agent.blocks)
    return Turn(
        run_id=run.id,
        agent_id=agent.id,
        conversation_id=run.thread.conversation_id,
        model=run.model or "",
        system=with_skills(system, overrides.skills),
        history=[message for message in history if message.role not in _UNTOLD],
        input=[message for message in run.input if message.role is not Role.APPROVAL],
        max_steps=overrides.max_steps,
        settings=_model_settings(settings),
        client_tools=overrides.client_tools,
        due=[] if pending is None else pending.due(run.input),
    )


def _model_settings(settings: Mapping[str, Any]) -> ModelSettings:
    reasoning = settings.get("reasoning") or {}
    return ModelSettings(
        temperature=settings.get("temperature"),
        max_output_tokens=settings.get("max_output_tokens"),
        reasoning_effort=reasoning.get("reasoning_effort"),
        parallel_tool_calls=settings.get("parallel_tool_calls"),
    )
