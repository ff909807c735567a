"""A server without HTTP in this process: real records, an in-memory log, the scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from reattach.agent.turns import Overrides
from reattach.domain.clock import Clock
from reattach.domain.errors import LogNotFoundError
from reattach.domain.events import RunStatus
from reattach.domain.ids import (
    DEFAULT_TENANT,
    Seq,
    new_agent_id,
    new_conversation_id,
    new_message_id,
    new_uuid,
)
from reattach.domain.limits import LEASE_SECONDS
from reattach.domain.messages import Message, Role, TextPart
from reattach.engine.base import Engine
from reattach.engine.catalog import Catalog
from reattach.engine.scripted import ScriptedEngine
from reattach.log.base import Head, Log
from reattach.log.memory import MemoryLog
from reattach.records.base import Agent, Conversation, Page, Run, Thread
from reattach.records.records import Records
from reattach.records.runs import hidden_events
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.observing.observer import RunObserver
from reattach.runs.representation import Representation
from reattach.runs.service import RunService, Send
from reattach.tools.base import Toolbox
from reattach.wire.sse import split_frames
from tests.support.clocks import LeapClock
from tests.support.faulty_stores import Faults, FaultyLog, faulty_records
from tests.support.records_files import open_records

MODEL = "scripted/echo"

ENDS_RUNS = ContinuePolicy(enabled=False)


@dataclass
class Stores:
    """A log and records that outlive every ``service`` on them, as data outlives processes."""

    records: Records
    log: Log
    clock: Clock
    agent: Agent
    services: list[RunService] = field(default_factory=list)

    async def hidden_events(self, run: Run) -> list[HiddenEvent]:
        """Return the events of the run that its log does not have."""
        found = await self.records._database.in_read(hidden_events.of_runs, [run.id])
        return found.get(run.id, [])

    def service(
        self,
        *,
        log: Log | None = None,
        records: Records | None = None,
        engine: Engine | None = None,
        toolbox: Toolbox | None = None,
        clock: Clock | None = None,
        retention: timedelta = timedelta(hours=24),
        boot: str | None = None,
        ping_interval_seconds: float = 15.0,
        lease_seconds: float = LEASE_SECONDS,
        policy: ContinuePolicy = ENDS_RUNS,
        observers: Iterable[RunObserver] = (),
    ) -> RunService:
        """Create the service of a new process on these stores or wrappers of them, not started.

        By default it ends interrupted runs instead of continuing them.
        """
        clock = clock or self.clock
        service = RunService(
            log or self.log,
            records or self.records,
            Catalog([engine or ScriptedEngine(clock=clock)]),
            clock,
            default_model=None,
            toolbox=toolbox,
            retention=retention,
            boot=boot,
            ping_interval_seconds=ping_interval_seconds,
            lease_seconds=lease_seconds,
            policy=policy,
            observers=observers,
        )
        self.services.append(service)
        return service

    def service_upon(self, faults: Faults, **options: Any) -> RunService:
        """Create a service whose stores have ``faults``."""
        return self.service(
            log=FaultyLog(self.log, faults), records=faulty_records(self.records, faults), **options
        )

    async def execute(self, statement: str, **values: object) -> None:
        """Change rows of the records as no version of Reattach would."""
        await self.records._database.in_write(
            lambda connection: connection.execute(text(statement), values)
        )

    async def conversation(self) -> Conversation:
        now = self.clock.now()
        conversation = Conversation(new_conversation_id(), self.agent.id, now, now)
        return await self.records.conversations.create(
            DEFAULT_TENANT, conversation, _system_message(now)
        )

    def send(
        self,
        conversation: Conversation | None,
        text: str,
        *,
        otid: str | None = None,
        background: bool = True,
        model: str = MODEL,
        **options: Any,
    ) -> Send:
        options = {"stream_tokens": True, "include_pings": False} | options
        messages = (
            Message(
                id=new_message_id(),
                role=Role.USER,
                parts=(TextPart(text),),
                created_at=self.clock.now(),
                otid=otid or new_uuid(),
            ),
        )
        return Send(
            tenant=DEFAULT_TENANT,
            agent=self.agent,
            conversation=conversation,
            messages=messages,
            background=background,
            run_type="send_conversation_message",
            representation=Representation(**options),
            overrides=Overrides(model=model),
        )

    async def run(self, run: Run) -> Run:
        """Read the run's record."""
        return await self.records.runs.get(run.tenant, run.id)

    async def active_runs(self) -> list[Run]:
        page = Page(limit=1000, ascending=True)
        return await self.records.runs.list(DEFAULT_TENANT, page, active_only=True)

    async def head(self, run: Run) -> Head | None:
        try:
            return await self.log.head(run.id)
        except LogNotFoundError:
            return None

    async def frames(self, run: Run) -> list[bytes]:
        """Read all frames of the run's log; an empty list if there is no log."""
        if await self.head(run) is None:
            return []
        piece = await self.log.read(run.id, Seq(0), max_bytes=2**40, max_events=2**40)
        return split_frames(piece.frames)

    async def kept(self, conversation: Conversation) -> list[tuple[Role, str]]:
        """Read the messages of the conversation without its system message."""
        thread = Thread(self.agent.id, conversation.id)
        messages = await self.records.messages.history(DEFAULT_TENANT, thread)
        return [(m.role, m.text) for m in messages if m.role is not Role.SYSTEM]

    async def assert_free(self, conversation: Conversation) -> None:
        """Assert that a new message to the conversation is answered."""
        service = self.service()
        if (
            service.ownership.shared
        ):  # Other processes would end the run of an owner without a lease.
            await service.ownership.register()
        run = await service.wait_until_settled(
            await service.send(self.send(conversation, "still there?"))
        )
        assert run.status is RunStatus.COMPLETED
        assert (await self.kept(conversation))[-1] == (Role.ASSISTANT, "still there?")


@asynccontextmanager
async def stores_in(directory: Path, clock: Clock | None = None) -> AsyncIterator[Stores]:
    clock = clock or LeapClock()
    records = await open_records(directory, clock)
    async with stores_of(records, MemoryLog(), clock) as stores:
        yield stores


@asynccontextmanager
async def stores_of(records: Records, log: Log, clock: Clock) -> AsyncIterator[Stores]:
    """Open stores with an agent, and close the records on exit."""
    now = clock.now()
    agent = Agent(new_agent_id(), "phoenix", "You come back.", now, now, model=MODEL)
    stores = Stores(records, log, clock, agent)
    try:
        await records.agents.create(DEFAULT_TENANT, agent, system_message=_system_message(now))
        yield stores
    finally:
        left = [task for service in stores.services for task in service.open_runs.tasks]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        await records.aclose()


def _system_message(now: datetime) -> Message:
    parts = (TextPart("You come back."),)
    return Message(id=new_message_id(), role=Role.SYSTEM, parts=parts, created_at=now)


async def eventually(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], seconds: float = 10.0
) -> None:
    """Return when ``condition`` holds. Fails if it does not within ``seconds``."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if result is True or (not isinstance(result, bool) and await result):
                return
            await asyncio.sleep(0.01)
