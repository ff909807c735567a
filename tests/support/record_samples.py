"""Sample records with all important fields set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.ids import (
    AgentId,
    RunId,
    TenantId,
    new_agent_id,
    new_block_id,
    new_conversation_id,
    new_message_id,
    new_run_id,
    new_step_id,
    new_tenant_id,
)
from reattach.domain.messages import Message, Role, TextPart
from reattach.records.base import (
    Agent,
    Block,
    Conversation,
    Page,
    RequestConfig,
    RequestKey,
    Run,
    Settlement,
    Step,
    Thread,
)
from reattach.records.records import Records
from reattach.records.runs.created import RunCreated

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
OURS = new_tenant_id()
THEIRS = new_tenant_id()


def setting(**values: Any) -> Callable[[Any], Any]:
    """Return the change of a row that sets these fields."""
    return lambda row: replace(row, **values)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class HandClock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def monotonic_seconds(self) -> float:
        return (self.time - NOON).total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def first(limit: int = 100, **rest: Any) -> Page:
    return Page(limit=limit, ascending=True, **rest)


def last(limit: int = 100, **rest: Any) -> Page:
    return Page(limit=limit, ascending=False, **rest)


def a_block(label: str | None = "human", **rest: Any) -> Block:
    values: dict[str, Any] = {"value": "likes tea", "created_at": NOON, "updated_at": NOON}
    return Block(id=new_block_id(), label=label, **values | rest)


def an_agent(name: str = "Ada", **rest: Any) -> Agent:
    values: dict[str, Any] = {"system": "You help.", "created_at": NOON, "updated_at": NOON}
    return Agent(id=new_agent_id(), name=name, **values | rest)


def a_conversation(agent_id: AgentId, **rest: Any) -> Conversation:
    values: dict[str, Any] = {"created_at": NOON, "updated_at": NOON}
    return Conversation(id=new_conversation_id(), agent_id=agent_id, **values | rest)


def a_message(text: str = "hello", role: Role = Role.USER, **rest: Any) -> Message:
    values: dict[str, Any] = {"created_at": NOON} | rest
    return Message(id=new_message_id(), role=role, parts=(TextPart(text),), **values)


def a_system_message() -> Message:
    return a_message("You help.", Role.SYSTEM)


def a_run(thread: Thread, tenant: TenantId = OURS, **rest: Any) -> Run:
    values: dict[str, Any] = {
        "status": RunStatus.CREATED,
        "background": True,
        "created_at": NOON,
        "model": "scripted/echo",
        "run_type": "send_conversation_message",
        "request_config": RequestConfig(use_assistant_message=False),
        "input": (a_message("hello"),),
        "owner": "process-1",
        "token": 1,
    }
    return Run(id=new_run_id(), tenant=tenant, thread=thread, **values | rest)


def a_key(*otids: str, payload: str = "payload") -> RequestKey:
    return RequestKey(otids=otids, payload_sha256=payload)


def a_step(run: Run, **rest: Any) -> Step:
    values: dict[str, Any] = {
        "created_at": NOON,
        "model": "scripted/echo",
        "usage": Usage(completion_tokens=3, prompt_tokens=5, total_tokens=8, step_count=1),
        "stop_reason": StopReason.END_TURN,
        "status": "success",
    }
    return Step(id=new_step_id(), run_id=run.id, agent_id=run.thread.agent_id, **values | rest)


def a_settlement(*messages: Message, **rest: Any) -> Settlement:
    values: dict[str, Any] = {
        "stop_reason": StopReason.END_TURN,
        "completed_at": at(5),
        "usage": Usage(completion_tokens=3, prompt_tokens=5, total_tokens=8, step_count=1),
        "steps": (),
        "duration_ns": 5_000_000_000,
    }
    return Settlement(messages=messages, **values | rest)


@dataclass(frozen=True)
class World:
    """An agent of ours with one conversation."""

    records: Records
    agent: Agent
    conversation: Conversation
    system_message: Message

    @property
    def thread(self) -> Thread:
        return Thread(self.agent.id, self.conversation.id)

    @property
    def default(self) -> Thread:
        return Thread(self.agent.id, None)

    async def start(self, thread: Thread | None = None, **rest: Any) -> Run:
        run = a_run(thread or self.thread, **rest)
        assert await self.records.runs.create(OURS, run, None, ()) == RunCreated(run)
        return run

    async def turn(
        self, *texts: str, thread: Thread | None = None, **rest: Any
    ) -> tuple[RunId, list[Message]]:
        """Create a run, end it with these messages, and return its id with them."""
        run = await self.start(thread)
        messages = [a_message(text, run_id=run.id) for text in texts]
        assert await self.records.runs.settle(run.id, a_settlement(*messages, **rest))
        return run.id, messages

    async def another(self, **rest: Any) -> Conversation:
        return await self.records.conversations.create(
            OURS, a_conversation(self.agent.id, **rest), a_system_message()
        )


async def a_world(records: Records, tenant: TenantId = OURS) -> World:
    agent = await records.agents.create(tenant, an_agent())
    system_message = a_system_message()
    conversation = await records.conversations.create(
        tenant, a_conversation(agent.id), system_message
    )
    return World(records, agent, conversation, system_message)


def ids(rows: Any) -> list[str]:
    return [row.id for row in rows]
