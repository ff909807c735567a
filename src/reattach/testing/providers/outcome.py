"""The run that an engine produces from one form: its events and its stored messages."""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from reattach.domain.clock import SystemClock
from reattach.domain.errors import EngineError
from reattach.domain.events import (
    Event,
    Failed,
    Output,
    RunStatus,
    Stopped,
    Usage,
)
from reattach.domain.ids import DEFAULT_TENANT, Seq, Token, new_agent_id, new_run_id
from reattach.domain.messages import ReasoningPart, TextPart, ToolCallPart, ToolReturnPart
from reattach.engine.base import ClientTool, Engine, ToolStarting
from reattach.records.base import Run, Thread
from reattach.runs.machine import RunMachine
from reattach.runs.transcript import Transcript
from reattach.testing.conformance.engine import Subject
from reattach.testing.providers.forms import Form
from reattach.tools.base import AttachedTool
from reattach.tools.function import FunctionTool
from reattach.tools.loop import ToolLoop
from reattach.tools.threads import Threads
from reattach.wire.letta import Encoder

_CALL_SECONDS = 10.0


@dataclass
class Outcome:
    """The events, tool calls and messages of a run that has ended."""

    events: list[Event] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)
    """The arguments of the calls of the tool ``add``."""
    begun: list[str] = field(default_factory=list)
    """The ids of the calls whose tools have started."""
    calls: list[ToolCallPart] = field(default_factory=list)
    """The calls as the conversation stores them."""
    returns: list[ToolReturnPart] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self._joined(TextPart)

    @property
    def reasoning(self) -> str:
        return self._joined(ReasoningPart)

    def _joined(self, kind: type[TextPart | ReasoningPart]) -> str:
        parts = [part for one in self.events if isinstance(one, Output) for part in one.parts]
        return "".join(part.text for part in parts if isinstance(part, kind))

    @property
    def stopped(self) -> Stopped:
        [stopped] = [one for one in self.events if isinstance(one, Stopped)]
        return stopped

    @property
    def error(self) -> str:
        return "".join(one.message for one in self.events if isinstance(one, Failed))

    @property
    def usage(self) -> Usage:
        [usage] = [one for one in self.events if isinstance(one, Usage)]
        return usage


async def outcome(engine: Engine, model: str, form: Form) -> Outcome:
    """Answer one turn with the server's tool ``add``, and run the calls of that."""
    result = Outcome()

    async def add(n: int) -> int:
        """Add one to a number."""
        result.ran.append(n)
        return n + 1

    tools = [AttachedTool(FunctionTool(add, Threads()), requires_approval=False)]
    loop = ToolLoop(engine, tools, SystemClock(), call_seconds=_CALL_SECONDS)
    look = ClientTool("look", "Look around.", {"type": "object"})
    turn = replace(
        Subject(engine, model).turn(form.name),
        client_tools=[look] if form.offers_client_tools else [],
    )
    machine = RunMachine(SystemClock(), stream_tokens=True)
    try:
        async for delta in loop.run(turn):
            result.events += machine.on_delta(delta)
            result.begun += [delta.tool_call_id] if isinstance(delta, ToolStarting) else []
    except EngineError as error:
        result.events += machine.fail(error)
    else:
        result.events += machine.finish()
    _keep(result, machine)
    return result


def _keep(result: Outcome, machine: RunMachine) -> None:
    """Fold the events into messages, and check that each can be encoded for the log."""
    run = _run()
    transcript, encoder = Transcript(), Encoder(run.id)
    transcript.begun = tuple(result.begun)
    for seq, event in enumerate(result.events, 1):
        json.loads(encoder.encode(event, Seq(seq)).split(b"data: ", 1)[1])
        transcript.add(event)
    settlement = transcript.settlement(run, machine.steps, datetime.now(UTC))
    parts = [part for message in settlement.messages for part in message.parts]
    result.calls = [part for part in parts if isinstance(part, ToolCallPart)]
    result.returns = [part for part in parts if isinstance(part, ToolReturnPart)]


def _run() -> Run:
    return Run(
        id=new_run_id(),
        tenant=DEFAULT_TENANT,
        thread=Thread(new_agent_id(), None),
        status=RunStatus.RUNNING,
        background=True,
        created_at=datetime.now(UTC),
        model=None,
        run_type="send_message",
        input=(),
        owner="test",
        token=Token(1),
    )
