"""The contract of an engine: it answers one turn as a sequence of deltas.

An engine knows nothing of runs, logs or clients. It gets a turn, yields its model's output as it is
produced, and returns. Ids, numbers, dates, storage, cancellation and the terminal group belong to
``runs``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final, TypeVar

from reattach.domain.events import StopReason, Usage
from reattach.domain.messages import (
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)

# How an interrupted answer is continued.


class Way(StrEnum):
    """A way to continue an answer whose model call was interrupted."""

    UPSTREAM = "upstream"
    """The provider keeps the answer; it is followed again, so nothing is generated twice."""
    PREFIX = "prefix"
    """The model gets the text so far as the beginning of its answer, and produces the rest."""
    STEP = "step"
    """The model call is made again. Only while no text of it was logged."""
    ASK = "ask"
    """The model is shown its text so far and asked to continue it. The seam may show."""


@dataclass(frozen=True, slots=True)
class Partial:
    """The output of one call of ``Engine.run`` that was interrupted.

    An engine that continues it yields only what follows, and no StepFinished for steps that had
    finished.
    """

    messages: Sequence[Message]
    """The model's messages and the tools' returns so far, in order."""
    finished_steps: int = 0
    """The number of steps among them that had finished; the output of another one may follow."""
    upstream_id: str | None = None
    """The id of the last AnswerKept of the step that had not finished. With it, a turn is continued
    by ``upstream`` even if there are no messages."""

    @property
    def text(self) -> str:
        """All text so far, joined."""
        return "".join(one.text for one in self.messages)


# The parts of a turn.


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool that the client runs: the model may call it, the engine must not."""

    name: str
    description: str | None
    parameters: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A tool of the agent that the server runs: the model may call it, the engine must not."""

    name: str
    description: str | None
    parameters: Mapping[str, object]
    requires_approval: bool = False


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings of the model's answer; None leaves one to the provider."""

    temperature: float | None = None
    max_output_tokens: int | None = None
    reasoning_effort: str | None = None
    """How much the model reasons: ``none``, ``minimal``, ``low`` and so on to ``max``."""
    reasons: bool | None = None
    """Whether the model reasons at all."""
    reasoning_tokens: int | None = None
    """The budget for reasoning; 0: none."""
    shows_reasoning: bool | None = None
    """Whether the reasoning is part of the answer."""
    effort: str | None = None
    """The effort for the whole answer; for reasoning alone where the provider knows no other."""
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None

    def over(self, other: "ModelSettings") -> "ModelSettings":
        """Return these settings, with unset ones taken from ``other``."""
        members = ((one.name, getattr(self, one.name)) for one in fields(self))
        return replace(other, **{name: value for name, value in members if value is not None})


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to answer: all that an engine may know of it."""

    run_id: str
    agent_id: str
    conversation_id: str | None
    model: str
    """The model's handle, ``provider/name``."""
    system: str
    """The system prompt, memory blocks included."""
    history: Sequence[Message]
    """The context of the conversation before this turn, oldest message first."""
    input: Sequence[Message]
    """The messages of this turn; at least one, unless there are ``due`` calls."""
    max_steps: int = 50
    settings: ModelSettings = field(default_factory=ModelSettings)
    client_tools: Sequence[ClientTool] = ()
    tools: Sequence[ServerTool] = ()
    """Tools that the server runs. When the model calls one, the engine gets a further turn whose
    input is the returns. None has the name of a client's tool."""
    due: Sequence[ToolCallPart] = ()
    """Calls of the previous step that may run now, because the client approved them, or because
    they needed no approval and waited for others. The engine runs them first and yields a
    ToolReturnPart for each."""
    counted_tokens: int | None = None
    """The provider's count of the system prompt and ``history`` before the last answer there; None
    if it is unknown."""
    partial: Partial | None = None
    """The output of this turn before an interruption, for engines whose ``ways`` include
    ``upstream`` or ``prefix``; ``history`` and ``input`` do not have it."""

    @property
    def said(self) -> str:
        """The text that the answer to this turn has so far, to be continued; mostly empty."""
        return "" if self.partial is None else self.partial.text


# Deltas, beside the parts of messages.


@dataclass(frozen=True, slots=True)
class ToolStarting:
    """A tool is about to run.

    The next delta is requested once everything before is in the log and this call in the run's
    record; never, if another process owns the run.
    """

    tool_call_id: str
    may_repeat: bool = False
    """Whether running it twice has the effect of running it once."""
    name: str = ""
    """The name of the tool, for metrics and traces."""


@dataclass(frozen=True, slots=True)
class AnswerKept:
    """The provider keeps the answer of this step, and it can be followed again by this id.

    The next delta is requested once the id is in the run's record.
    """

    upstream_id: str


@dataclass(frozen=True, slots=True)
class Compacting:
    """The context is too large, and a summary of its older part is about to be made."""

    trigger: str
    context_tokens: int
    context_window_tokens: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """A summary that replaces the older messages."""

    summary: SummaryPart
    usage: Usage
    """The usage of making the summary."""
    model: str | None = None
    """The handle of the model that made it; None: the turn's."""
    kept_from_step: int | None = None
    """The number from 0 of a finished step of this run, if its message is the first that stays in
    context; it has no id yet for engines."""


@dataclass(frozen=True, slots=True)
class StepFinished:
    """One call of the model has ended; later deltas belong to the next step.

    An engine that fails after the provider counted usage yields this before it raises.
    """

    usage: Usage
    broke_off: bool = False
    """Whether an EngineError with ``may_pass`` follows, so that the step has not finished if it is
    continued: only its usage counts."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The turn has ended. Must be the last delta; without it the reason is ``end_turn``."""

    reason: StopReason = StopReason.END_TURN


Delta = (
    TextPart | ReasoningPart | HiddenReasoningPart | ToolCallDelta | ToolReturnPart
    | ToolStarting | AnswerKept | Compacting | Compacted | StepFinished | Finished
)  # fmt: skip
"""A piece of an engine's output.

A TextPart or a ReasoningPart is a fragment; adjacent fragments of one kind form one part. No
TextPart is empty. The signature of reasoning may come once, with its last fragment. A
ToolReturnPart is the return of a tool that the engine ran, without images.
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that an engine offers."""

    handle: str
    name: str
    provider_name: str
    provider_type: str
    """One of the SDK's provider types; ``openai`` for every other provider."""
    context_window_tokens: int
    max_output_tokens: int | None = None
    display_name: str | None = None
    can_summarize: bool = True
    """Whether the model can summarize conversations that get too long for it."""


ONLY_STEP: Final = frozenset({Way.STEP})


class Engine(ABC):
    """Answers turns for the models that it offers."""

    announces_tools: bool = False
    """Whether a ToolStarting precedes each tool that it runs, so that an unannounced call has
    certainly not run. Otherwise that is unknown after a crash."""

    own_tools: Collection[str] | None = None
    """The names of the tools that it runs itself, beside those of the turn. A call of any other
    name gets an error return that lists the tools. None: it may have any tool, so only a call
    without a name gets that error."""

    lists_later: bool = False
    """Whether ``models`` may be empty until ``keep_current`` has fetched the list."""

    @abstractmethod
    def run(self, turn: Turn) -> AsyncIterator[Delta]:
        """Answer ``turn`` as an async generator; several turns may run at once.

        Deltas are yielded as soon as the model has produced them. When the run is cancelled or
        handed over, the generator is closed (``aclose``) at any await. It must then stop the model
        within a second and must not swallow the cancellation. An answer whose AnswerKept was
        yielded goes on at the provider: only ``cancel_upstream`` stops it.

        Raises:
            EngineError: The turn failed; the text is safe to show. Any other exception is a fault
                of the engine, and clients see only that.
        """

    def ways(self, turn: Turn) -> Collection[Way]:  # noqa: ARG002
        """Return the ways in which it can continue ``turn.partial``; by default only ``step``."""
        return ONLY_STEP

    async def cancel_upstream(self, model: str, upstream_id: str) -> None:  # noqa: ARG002
        """Stop the answer of ``model`` that the provider keeps under that id.

        Called when a run has ended before such an answer was whole, also in a process that never
        ran its turn, and never while the run may be continued. Returns within a second. A failure
        is logged, not raised: the run has ended anyway.
        """
        return

    @abstractmethod
    def models(self) -> Sequence[Model]:
        """Return the models on offer now, without I/O."""

    def find(self, handle: str) -> Model | None:
        """Return the model of that handle, even if it is not listed; None if there is none."""
        return next((model for model in self.models() if model.handle == handle), None)

    async def refresh(self) -> bool:
        """Fetch the list of models once, within a bound; return False if that failed."""
        return True

    def problems(self) -> Sequence[str]:
        """Return sentences about models that could not be listed."""
        return ()

    async def keep_current(self) -> None:
        """Keep ``models`` current until cancelled; return at once if they never change."""
        return

    async def aclose(self) -> None:
        """Release the engine's resources. No turn is running."""
        return


SomeDelta = TypeVar("SomeDelta")


@asynccontextmanager
async def closing_deltas(
    deltas: AsyncIterator[SomeDelta],
) -> AsyncIterator[AsyncIterator[SomeDelta]]:
    """Close a generator of deltas on every exit; a plain iterator is left alone."""
    try:
        yield deltas
    finally:
        if isinstance(deltas, AsyncGenerator):
            await deltas.aclose()
