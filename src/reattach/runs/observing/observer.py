"""The interface through which metrics and traces see the course of runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog

from reattach.domain.ids import RunId, Seq
from reattach.domain.messages import Message, ToolReturnPart
from reattach.engine.base import Turn
from reattach.records.base import Run, Settlement, StepRecord
from reattach.runs.attempts.policy import Interruption
from reattach.runs.transcript import Transcript

NO_SEQ: Final = Seq(0)

logger = structlog.get_logger(__name__)


class AttemptOutcome(StrEnum):
    """How an attempt ended, as the process that made it saw it."""

    RUN_ENDED = "run_ended"
    """The run has ended and is settled."""
    PROVIDER_FAILED = "provider_failed"
    """The provider's stream broke, and the next attempt follows in this process."""
    HANDED_OVER = "handed_over"
    """The process is being stopped, and another one or the next start continues the run."""
    LOST = "lost"
    """The process must not or cannot write any more: another owner has the run, or a store does not
    answer. Recovery reports the attempt with ``run_taken_over``."""


@dataclass(slots=True)
class ObservedAttempt:
    """An attempt of this process at a run. It stays the same object until the attempt has ended."""

    run: Run
    """As this process knew it at the latest call."""
    number: int
    """From 1, over all processes."""
    began_at: datetime
    agent_name: str
    interruption: Interruption | None
    """Why the attempt before it ended; None for the first one."""
    way: str | None
    """How it continues the run; None for the first one."""
    first_seq: Seq
    """The seq of the first event that it adds."""
    transcript: Transcript
    """All events of the run so far."""
    turn: Turn | None = None
    """The turn without earlier attempts; None until it was read."""
    has_summary: bool = False
    """Whether the context was compacted in this attempt."""
    last_seq: Seq = NO_SEQ
    """The newest event, at the end of the attempt."""

    @property
    def run_id(self) -> RunId:
        return self.run.id

    def output(self) -> Sequence[Message]:
        """Return the messages of the run so far. It joins all fragments: for content alone."""
        return self.transcript.messages(self.run)


@dataclass(frozen=True, slots=True)
class Takeover:
    """A run that this process took over from an owner that is gone, or from its own failed driver.

    The last attempt was lost unless ``interruption`` is a handover: its process can no longer
    report it.
    """

    run: Run
    """As it was before the takeover continues or ends it."""
    interruption: Interruption
    at: datetime
    settlement: Settlement | None = None
    """How the run ended; None: a driver of this process continues it."""
    agent_name: str = ""
    """Empty if the agent was deleted."""

    @property
    def continues(self) -> bool:
        """Whether a driver of this process continues the run; else it has ended."""
        return self.settlement is None

    @property
    def attempt_number(self) -> int:
        """The number of the last attempt."""
        return len(self.run.attempts) + 1

    @property
    def attempt_began_at(self) -> datetime:
        """The beginning of the last attempt."""
        return self.run.attempts[-1].began_at if self.run.attempts else self.run.created_at

    @property
    def attempt_ended_at(self) -> datetime:
        """The end of the last attempt; about then if its owner died."""
        # An owner notes only now and then that it lives, and a step the whole second of its start.
        worked_until = [step.started_at + timedelta(seconds=1) for step in self.run.notes.steps]
        ended_at = max(self.run.interrupted_at or self.at, *worked_until, self.attempt_began_at)
        return max(min(ended_at, self.at), self.attempt_began_at)


class RunObserver:
    """Sees the course of the runs of one process. Each method does nothing by default.

    The calls of one driver are, in this order: ``run_began`` if the run is new; for each attempt
    ``attempt_began``, any number of calls for models and tools, ``attempt_ended``; ``run_ended``,
    before the ``attempt_ended`` of the last attempt, if the run is settled. Calls are made in the
    event loop and must return at once. There is no call for single events. An exception of an
    observer is logged and has no effect.
    """

    def traceparent(self) -> str | None:
        """Return the W3C trace context of the run that is about to be created; None: no traces."""
        return None

    def run_began(self, run: Run) -> None:
        """A new run is in the records, and this process drives it."""

    def run_ended(self, run: Run, settlement: Settlement) -> None:
        """This process wrote the end of a run into the records, as its driver or in recovery."""

    def run_taken_over(self, takeover: Takeover) -> None:
        """This process has a run whose former owner is gone, and continues or ends it."""

    def attempt_began(self, attempt: ObservedAttempt) -> None:
        """The log of the run is about to be written by this attempt."""

    def attempt_ended(
        self, attempt: ObservedAttempt, outcome: AttemptOutcome, error: BaseException | None
    ) -> None:
        """The attempt is over. ``error`` is that of the engine, if one ended the attempt."""

    def first_output(self, attempt: ObservedAttempt, seconds: float) -> None:
        """The first output of the run exists, ``seconds`` after its send reached the driver.

        Called once for a run, and never for a run whose first attempt was lost before.
        """

    def model_asked(self, attempt: ObservedAttempt) -> None:
        """The engine may call its model now. A tool or the end of the turn may follow instead."""

    def step_began(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        """The first output of a model call, which is a step of the run, has arrived."""

    def step_ended(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        """The model call has ended, and its usage is known."""

    def tool_began(self, attempt: ObservedAttempt, call_id: str, name: str) -> None:
        """A tool that the server runs is about to run."""

    def tool_ended(self, attempt: ObservedAttempt, returned: ToolReturnPart) -> None:
        """The tool has returned; ``returned`` has the id that ``tool_began`` had."""


class Observers(RunObserver):
    """Passes each call to several observers, in their order, and logs their exceptions."""

    def __init__(self, observers: Iterable[RunObserver] = ()) -> None:
        self._observers = tuple(observers)

    def _each(self, call: Callable[[RunObserver], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:
                logger.exception("observer failed", observer=type(observer).__name__)

    def traceparent(self) -> str | None:
        for observer in self._observers:
            try:
                traceparent = observer.traceparent()
            except Exception:
                logger.exception("observer failed", observer=type(observer).__name__)
            else:
                if traceparent is not None:
                    return traceparent
        return None

    def run_began(self, run: Run) -> None:
        self._each(lambda one: one.run_began(run))

    def run_ended(self, run: Run, settlement: Settlement) -> None:
        self._each(lambda one: one.run_ended(run, settlement))

    def run_taken_over(self, takeover: Takeover) -> None:
        self._each(lambda one: one.run_taken_over(takeover))

    def attempt_began(self, attempt: ObservedAttempt) -> None:
        self._each(lambda one: one.attempt_began(attempt))

    def attempt_ended(
        self, attempt: ObservedAttempt, outcome: AttemptOutcome, error: BaseException | None
    ) -> None:
        self._each(lambda one: one.attempt_ended(attempt, outcome, error))

    def first_output(self, attempt: ObservedAttempt, seconds: float) -> None:
        self._each(lambda one: one.first_output(attempt, seconds))

    def model_asked(self, attempt: ObservedAttempt) -> None:
        self._each(lambda one: one.model_asked(attempt))

    def step_began(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        self._each(lambda one: one.step_began(attempt, step))

    def step_ended(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        self._each(lambda one: one.step_ended(attempt, step))

    def tool_began(self, attempt: ObservedAttempt, call_id: str, name: str) -> None:
        self._each(lambda one: one.tool_began(attempt, call_id, name))

    def tool_ended(self, attempt: ObservedAttempt, returned: ToolReturnPart) -> None:
        self._each(lambda one: one.tool_ended(attempt, returned))
