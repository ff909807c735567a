"""What an engine is: something that answers one turn as a sequence of deltas.

An engine knows nothing of runs, logs or clients. It is given a turn, yields what its model
produces as it is produced, and returns; ids, numbers, dates, storage, cancelling and the terminal
group are the business of ``runs``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeVar

from reattach.domain.events import StopReason, Usage
from reattach.domain.ids import MessageId
from reattach.domain.messages import CompactionStats, Message, ToolCallPart

# What a turn is made of.


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool that the client runs: the model may call it, the engine may not."""

    name: str
    description: str | None
    parameters: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A tool of the agent, which the server runs: the model may call it, the engine may not."""

    name: str
    description: str | None
    parameters: Mapping[str, object]
    requires_approval: bool = False


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How the model is to answer; None leaves it to the provider."""

    temperature: float | None = None
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    """How much it is to reason: ``none``, ``minimal``, ``low`` and so on to ``max``."""
    reasons: bool | None = None
    """Whether it is to reason at all."""
    reasoning_tokens: int | None = None
    """What it may spend on that; 0: nothing."""
    shows_reasoning: bool | None = None
    """Whether its reasoning is to be told."""
    effort: str | None = None
    """How much it is to spend on the answer as a whole; where it is not known, on reasoning."""
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None

    def over(self, other: "ModelSettings") -> "ModelSettings":
        """These, and those of ``other`` where these leave it to the provider."""
        members = ((one.name, getattr(self, one.name)) for one in fields(self))
        return replace(other, **{name: value for name, value in members if value is not None})


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to answer: everything that an engine may know of it."""

    run_id: str
    agent_id: str
    conversation_id: str | None
    model: str
    """The model's handle, ``provider/name``."""
    system: str
    """The system prompt, memory blocks included."""
    history: Sequence[Message]
    """What is in context of the conversation before this turn, oldest first."""
    input: Sequence[Message]
    """The messages of this turn; at least one, unless there are ``due`` calls."""
    max_steps: int = 50
    settings: ModelSettings = field(default_factory=ModelSettings)
    client_tools: Sequence[ClientTool] = ()
    tools: Sequence[ServerTool] = ()
    """What the server runs when the model has called it, after which the engine is asked on with
    a turn whose input is what the tools returned. None has the name of a client's tool."""
    due: Sequence[ToolCallPart] = ()
    """Calls of the step before that may run now: the client approved them, or they needed no
    approval and waited for others. The engine runs them first, with a ToolReturn for each."""
    counted_tokens: int | None = None
    """What the provider counted of the system prompt and ``history`` up to its last answer there,
    which is not included; None if it did not."""


# What an engine yields.


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer. Adjacent deltas of one kind make one part; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's reasoning; ``signature`` may come once, with the last delta."""

    text: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ReasoningHidden:
    state: Literal["redacted", "omitted"]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of one tool call: its name with the first delta, then its arguments' JSON text.

    A name that comes in pieces before the arguments is joined. A second name under an id whose
    arguments are whole begins another call, which is given an id of its own.
    A turn in which a call needs approval is over with that step, and ends for the reason
    ``requires_approval``: the client runs the call, or lets the engine run it (``Turn.due``).
    """

    tool_call_id: str
    name: str | None = None
    arguments: str | None = None
    needs_approval: bool = False


@dataclass(frozen=True, slots=True)
class ToolReturn:
    """A tool that the engine ran has returned."""

    tool_call_id: str
    name: str
    status: Literal["success", "error"]
    output: str
    stdout: tuple[str, ...] | None = None
    stderr: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ToolStarting:
    """A tool is about to run.

    The next delta is asked for when all before is in the log and this in the run's record; never,
    if another process has the run.
    """

    tool_call_id: str


@dataclass(frozen=True, slots=True)
class Compacting:
    """The context is too large, and a summary of its older part is about to be made."""

    trigger: str
    context_tokens: int
    context_window_tokens: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """The summary stands for everything before ``kept_from`` from now on."""

    summary: str
    kept_from: MessageId | int
    """A message of the turn; or, by its number from 0, a step of this run that has finished."""
    stats: CompactionStats
    usage: Usage
    """What the summary has cost."""
    model: str | None = None
    """The handle of the model that made it; None: the turn's."""


@dataclass(frozen=True, slots=True)
class StepFinished:
    """One call of the model is over; what comes next belongs to the next step.

    An engine that fails after the provider counted something yields this first, and then raises.
    """

    usage: Usage


@dataclass(frozen=True, slots=True)
class Finished:
    """The turn is over. Must be the last thing yielded; without it the reason is ``end_turn``."""

    reason: StopReason = StopReason.END_TURN


Delta = (
    TextDelta | ReasoningDelta | ReasoningHidden | ToolCallDelta | ToolStarting | ToolReturn
    | Compacting | Compacted | StepFinished | Finished
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A model that an engine offers."""

    handle: str
    name: str
    provider_name: str
    provider_type: str
    """One of the SDK's provider types, such as ``openai``; what else there is counts as that."""
    context_window_tokens: int
    max_output_tokens: int | None = None
    display_name: str | None = None
    can_summarize: bool = True
    """Whether it may be asked for a summary of a conversation that gets too long for it."""


class Engine(ABC):
    """Answers turns for the models that it offers."""

    announces_tools: bool = False
    """Whether each tool that it runs is preceded by a ToolStarting, so that a call without one has
    not been run. Otherwise nobody knows, of a run that died."""

    own_tools: Collection[str] | None = None
    """The names of the tools that it runs itself, beside those of the turn. A call of any other
    name is answered with an error that names the tools there are. None: it may have any tool, so
    only a call without a name is answered so."""

    lists_later: bool = False
    """Whether ``models`` may be empty at first, until ``keep_current`` has asked for them."""

    @abstractmethod
    def run(self, turn: Turn) -> AsyncIterator[Delta]:
        """Answer ``turn`` as an async generator.

        A delta is yielded as soon as the model has produced it. The generator is closed
        (``aclose``) when the run is cancelled, at any await: it must then stop the model within
        a second and must not swallow the cancellation. It may be asked for many turns at once.

        Raises EngineError with a text that is safe to show. Any other exception counts as a
        fault of the engine, and clients see no more than that.
        """

    @abstractmethod
    def models(self) -> Sequence[Model]:
        """The models that it offers at present. Does no I/O."""

    def find(self, handle: str) -> Model | None:
        """The model of that handle, also if ``models`` does not list it; None if there is none."""
        return next((model for model in self.models() if model.handle == handle), None)

    async def refresh(self) -> bool:
        """Bring ``models`` up to date once, within a bound; return False if that failed."""
        return True

    def problems(self) -> Sequence[str]:
        """Sentences on what kept models from being listed; none if nothing did."""
        return ()

    async def keep_current(self) -> None:
        """Keep ``models`` current until cancelled, or return if they do not change."""
        return

    async def aclose(self) -> None:
        """Let go of whatever the engine holds; no turn is under way."""
        return


SomeDelta = TypeVar("SomeDelta")


@asynccontextmanager
async def closing_deltas(
    deltas: AsyncIterator[SomeDelta],
) -> AsyncIterator[AsyncIterator[SomeDelta]]:
    """Close a generator of deltas on every way out; a plain iterator has nothing to close."""
    try:
        yield deltas
    finally:
        if isinstance(deltas, AsyncGenerator):
            await deltas.aclose()
