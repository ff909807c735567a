"""Reports of one driver to the observers of runs."""

from msgspec.structs import replace

from reattach.domain.clock import Clock
from reattach.domain.ids import Seq
from reattach.domain.messages import ToolReturnPart
from reattach.domain.text import storable_text
from reattach.engine.base import Compacted, Delta, ToolStarting, Turn
from reattach.records.base import Attempt, Run, StepRecord
from reattach.runs.attempts.policy import Interruption
from reattach.runs.machine import RunMachine
from reattach.runs.observing.observer import NO_SEQ, AttemptOutcome, ObservedAttempt, RunObserver
from reattach.runs.transcript import Transcript


class AttemptReports:
    """Reports the attempts of one driver, and the model calls and tools in them.

    ``step`` is the step that was last reported as begun and has not ended. A text delta within it
    needs no report.
    """

    def __init__(self, observer: RunObserver, clock: Clock, agent_name: str) -> None:
        self._observer = observer
        self._clock = clock
        self._agent_name = agent_name
        self._sent_at_seconds = clock.monotonic_seconds()
        self._has_output = False
        self._steps = 0
        """The number of steps that were reported as ended."""
        self._calls: set[str] = set()
        """The calls whose tools are running."""
        self._attempt: ObservedAttempt | None = None
        self.step: StepRecord | None = None
        self.turn: Turn | None = None

    def begin_first(self, run: Run, transcript: Transcript) -> None:
        """Report the first attempt at a run."""
        self._begin(run, transcript, Seq(1), interruption=None, way=None)

    def begin(
        self, run: Run, attempt: Attempt, transcript: Transcript, machine: RunMachine
    ) -> None:
        """Report an attempt that continues the run from the state of ``machine``."""
        interruption = Interruption(attempt.interruption)
        self._has_output = True  # The first attempt may have had output before it was lost.
        self._steps = len(machine.steps)
        self.step = None
        self._begin(run, transcript, attempt.first_seq, interruption=interruption, way=attempt.way)

    def _begin(
        self,
        run: Run,
        transcript: Transcript,
        first_seq: Seq,
        *,
        interruption: Interruption | None,
        way: str | None,
    ) -> None:
        attempt = ObservedAttempt(
            run=run,
            number=len(run.attempts) + 1,
            began_at=run.attempts[-1].began_at if run.attempts else run.created_at,
            agent_name=self._agent_name,
            interruption=interruption,
            way=way,
            first_seq=first_seq,
            transcript=transcript,
            turn=self.turn,
        )
        self._attempt = attempt
        self._observer.attempt_began(attempt)

    def end(
        self,
        run: Run,
        outcome: AttemptOutcome,
        last_seq: Seq = NO_SEQ,
        error: BaseException | None = None,
    ) -> None:
        """Report the end of the attempt, if one has begun. Idempotent."""
        attempt, self._attempt = self._attempt, None
        self._calls.clear()
        if attempt is not None:
            attempt.run, attempt.last_seq = run, last_seq
            self._observer.attempt_ended(attempt, outcome, error)

    def ask_model(self, turn: Turn) -> None:
        """Report that the engine may call its model; ``turn`` is that of the first attempt."""
        self.turn = turn
        if self._attempt is not None:
            self._attempt.turn = turn
            self._observer.model_asked(self._attempt)

    def note_output(self, delta: Delta, machine: RunMachine, run: Run) -> None:
        """Report the steps that have begun and ended with ``delta``, which the machine has."""
        attempt = self._attempt
        if attempt is None:
            return
        attempt.run = run
        for step in machine.steps[self._steps :]:
            self._note_begin(attempt, step)
            self._observer.step_ended(attempt, step)
            self.step = None
            self._steps += 1
        attempt.has_summary = attempt.has_summary or isinstance(delta, Compacted)
        if machine.open_step is not None:
            self._note_begin(attempt, machine.open_step)
            self.step = machine.open_step

    def _note_begin(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        if self.step is not None and self.step.id == step.id:
            return
        if not self._has_output:
            self._has_output = True
            seconds = self._clock.monotonic_seconds() - self._sent_at_seconds
            self._observer.first_output(attempt, seconds)
        self._observer.step_began(attempt, step)

    def begin_tool(self, call_id: str, starting: ToolStarting) -> None:
        """Report a tool that is about to run; ``call_id`` is the id of its call in the log."""
        if self._attempt is not None:
            self._calls.add(call_id)
            self._observer.tool_began(self._attempt, call_id, storable_text(str(starting.name)))

    def end_tool(self, call_id: str, returned: ToolReturnPart) -> None:
        """Report the return of a tool, and that the engine may call its model again."""
        if self._attempt is not None and call_id in self._calls:
            self._calls.discard(call_id)
            returned = replace(returned, tool_call_id=call_id)
            self._observer.tool_ended(self._attempt, returned)
            self._observer.model_asked(self._attempt)
