"""Driving one run in this process: from the engine to the log, to the settlement."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from reattach.domain.backoff import Backoff, until_available
from reattach.domain.clock import Clock
from reattach.domain.errors import (
    EngineError,
    FencedError,
    LimitExceededError,
    LogError,
    LogNotFoundError,
    SeqMismatchError,
    StoreUnavailableError,
)
from reattach.domain.events import Event, RunStatus
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.limits import ENGINE_STOP_SECONDS
from reattach.domain.messages import (
    ReasoningPart,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.engine.base import (
    AnswerKept,
    Delta,
    Finished,
    ToolStarting,
    Turn,
    closing_deltas,
)
from reattach.log.base import Log, RunWriter
from reattach.log.commit_times import Stretch
from reattach.records.base import Attempt, Run, Settlement
from reattach.records.contexts.contexts import ThreadContext
from reattach.records.runs.runs import Runs
from reattach.runs.attempts.continuation import Continuation, continue_run
from reattach.runs.attempts.policy import ContinuePolicy, Interruption
from reattach.runs.attempts.record import OwnedRun
from reattach.runs.attempts.source import TurnSource
from reattach.runs.endings import DRAINED, LOG_LOST, Ending
from reattach.runs.observing.lines import log_beginning, log_continuation
from reattach.runs.observing.observer import AttemptOutcome, RunObserver
from reattach.runs.observing.reports import AttemptReports
from reattach.runs.output import RunOutput
from reattach.runs.representation import Representation
from reattach.runs.transcript import Transcript

logger = structlog.get_logger(__name__)


_ENGINE_FAULT = EngineError("An error occurred during agent execution.")
_TOOL_NOT_NOTED = EngineError(
    "The records do not answer, so the tool did not run. Send again later, with a new OTID."
)
_CONVERSATION_UNREADABLE = EngineError(
    "The conversation could not be read. Send the message again, with a new OTID."
)

_FRAGMENTS = frozenset({TextPart, ReasoningPart, ToolCallDelta})
"""The types of most deltas: they neither end a step nor need a note."""

_RETRY_SECONDS = (1.0, 8.0)
"""The first and the longest wait before a provider is asked again."""


class _HandedOverError(Exception):
    """The run was interrupted to be continued by another process."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A run whose earlier attempt was interrupted, with its log open for this process."""

    by: Interruption
    transcript: Transcript
    """All events in the log."""
    writer: RunWriter
    logged_bytes: int
    """The size of the log."""
    ending: Ending
    """The end of the run if it cannot be continued."""


class RunDriver:
    """Drives one run until it ends or another process has it, whether anybody reads it or not.

    ``opened`` is set when the log can be followed. ``done`` is set when the run is ``settled``,
    when another owner has it or may take it, or when it was ``given_up`` because the store failed;
    recovery then continues or ends it. ``interrupted`` is the earlier attempt that this one
    continues.
    """

    def __init__(
        self,
        run: Run,
        representation: Representation,
        *,
        source: TurnSource,
        log: Log,
        runs: Runs,
        clock: Clock,
        aliases: Sequence[str],
        settle: Callable[[Run, Settlement, Seq], Awaitable[None]],
        policy: ContinuePolicy,
        observer: RunObserver,
        uniform: Callable[[float, float], float] = random.uniform,
        interrupted: Interrupted | None = None,
    ) -> None:
        self.record = OwnedRun(run, runs, clock)
        self.admitted = interrupted is not None
        """Whether the records have the run with this driver's process as its owner."""
        self.context: ThreadContext | None = None
        """The context of the thread as of the admission, if that has read it."""
        self.opened = asyncio.Event()
        self.done = asyncio.Event()
        self.settled = False
        self.given_up = False
        self._source = source
        self._engine = source.engine(run)
        self._aliases = aliases
        self._policy = policy
        self._uniform = uniform
        self._earlier = interrupted
        self._attempts_before = len(run.attempts)
        self._disowned = False
        self._handing_over = False
        self._include_pings = representation.include_pings
        self._log = log
        self._clock = clock
        self._settle = settle
        transcript = None if interrupted is None else interrupted.transcript
        self._output = RunOutput(self.record, representation, clock, transcript)
        self._first_turn: Turn | None = None
        """The turn without earlier attempts."""
        self._ending: Ending | None = None
        self._stopping = asyncio.Event()
        self._error: BaseException | None = None
        """The error that ended the engine."""
        self._observer = observer
        self._reports = AttemptReports(observer, clock, source.agent.name)

    @property
    def run(self) -> Run:
        return self.record.run

    @property
    def writer(self) -> RunWriter | None:
        """The writer of the run's log; None until the log is open."""
        return getattr(self._output, "writer", None)

    @property
    def stretch(self) -> Stretch | None:
        """When the events of this driver were in the log."""
        return self._output.commit_times.stretch()

    @property
    def goes_on(self) -> bool:
        """Whether the log has an event of the engine from after this driver continued the run."""
        attempts = self.run.attempts
        has_continued = len(attempts) > self._attempts_before
        return has_continued and self._output.writer.acknowledged_seq >= attempts[-1].first_seq

    def end(self, ending: Ending) -> None:
        """End the run soon. Idempotent: only the first ending counts, and none after the end."""
        if self._ending is None:
            self._ending = ending
            self._stopping.set()

    def disown(self) -> None:
        """Stop the engine and write nothing more, because another process owns the run."""
        self._disowned = True
        self._stopping.set()

    def hand_over(self) -> None:
        """Stop the engine, and let another process continue the run, or end it if none can."""
        self._handing_over = True
        self._stopping.set()

    async def drive(self) -> None:
        """Drive the run until it is settled. Raises nothing but its own cancellation."""
        try:
            await self._drive()
        except FencedError:
            logger.warning("run taken over by another process", run_id=self.run.id)
        except _HandedOverError:
            logger.info("run handed over", run_id=self.run.id)
            self._report_end(AttemptOutcome.HANDED_OVER)
        except (LogError, StoreUnavailableError) as error:
            self.given_up = True
            logger.warning("run given up", run_id=self.run.id, reason=error.detail)
        except Exception:
            self.given_up = True
            logger.exception("run given up", run_id=self.run.id)
        finally:
            self._report_end(AttemptOutcome.LOST)
            self.opened.set()
            self.done.set()

    def _report_end(self, outcome: AttemptOutcome, error: BaseException | None = None) -> None:
        """Report the end of the attempt, unless that was done."""
        last_seq = self._output.writer.last_seq if self.opened.is_set() else Seq(0)
        self._reports.end(self.run, outcome, last_seq, error)

    async def _drive(self) -> None:
        if self._earlier is not None:
            log_continuation(self.run)
        else:
            log_beginning(self.run)
            self._observer.run_began(self.run)
            self._reports.begin_first(self.run, self._output.transcript)
        # Read while the log opens: no other run can add to the thread now.
        turn = asyncio.create_task(
            until_available(self._clock, lambda: self._source.turn(self.run, self.context)),
            name=f"turn {self.run.id}",
        )
        turn.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            if self._earlier is None:
                await self._open(first_seq=FIRST_SEQ)
            else:
                self._use(self._earlier.writer)
                self._output.writer.count_earlier(self._earlier.logged_bytes)
            if self.run.status is RunStatus.CREATED:
                await self.record.mark_running(announces_tools=self._engine.announces_tools)
            self.opened.set()
            await self._write_answer(turn)
        finally:
            turn.cancel()
        machine, transcript = self._output.machine, self._output.transcript
        transcript.begun = self.run.begun_calls
        # A run that was to be continued may have ended before that.
        steps = machine.steps or transcript.steps_seen()
        settlement = transcript.settlement(self.run, steps, self._clock.now())
        settlement = replace(settlement, log=self._output.log_summary())
        await self._settle(self.run, settlement, self._output.writer.last_seq)
        self.settled = True
        self._report_end(AttemptOutcome.RUN_ENDED, self._error)

    async def _write_answer(self, turn: "asyncio.Task[Turn]") -> None:
        """Write the engine's answer and the terminal group into the log, and close it."""
        if self._include_pings and not self._output.writer.last_seq:
            await self._output.put(self._output.machine.ping())
        try:
            terminal = await self._run_engine(turn)
            await self._output.close(terminal)
        except (LogNotFoundError, SeqMismatchError) as error:
            logger.error("log lost by its store", run_id=self.run.id, reason=error.detail)  # noqa: TRY400
            await self._close_lost_log()
        finally:
            await self._output.writer.abandon()

    async def _open(self, *, first_seq: Seq) -> None:
        writer = await until_available(
            self._clock,
            lambda: self._log.open(
                self.run.id, self.run.token, first_seq=first_seq, aliases=self._aliases
            ),
        )
        self._use(writer)

    def _use(self, writer: RunWriter) -> None:
        writer.clock = self._clock
        writer.on_failure = self._stopping.set
        self._output.use(writer)

    async def _close_lost_log(self) -> None:
        """Close a log that its store lost, at a seq after everything a reader may have seen."""
        await self._open(first_seq=self._output.writer.last_seq + 1)
        ending = self._ending or LOG_LOST
        terminal = self._output.machine.stop(ending.reason, ending.failure)
        if not terminal:  # The terminal group or the event before it was lost.
            terminal = LOG_LOST.terminal_group(self._output.transcript.usage)
        await self._output.close(terminal)

    async def _run_engine(self, turn: "asyncio.Task[Turn]") -> list[Event]:
        """Run the engine until it ends or is interrupted, and return the terminal group."""
        engine_task = asyncio.create_task(self._answer(turn), name=f"engine {self.run.id}")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({engine_task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not engine_task.done():
                await self._stop(engine_task)
        finally:
            stopping.cancel()
            engine_task.cancel()
        machine = self._output.machine
        if self._disowned:
            raise self.record.not_owner()
        if self._output.writer.failure is not None:
            raise self._output.writer.failure
        was_stopped = not engine_task.done() or engine_task.cancelled()
        if self._handing_over and self._ending is None and was_stopped:
            await self._release()
        if self._ending is not None:
            return machine.stop(self._ending.reason, self._ending.failure)
        if engine_task.cancelled():  # by the engine itself
            return self._fail(asyncio.CancelledError())
        error = engine_task.exception()
        if isinstance(error, FencedError):
            raise error
        if isinstance(error, StoreUnavailableError) and self._first_turn is not None:
            raise error  # The run is given up, and goes on when the records answer.
        return machine.finish() if error is None else self._fail(error)

    async def _stop(self, engine_task: asyncio.Task[None]) -> None:
        """Cancel the engine. If it ignores that, continue without it."""
        engine_task.cancel()
        await asyncio.wait({engine_task}, timeout=ENGINE_STOP_SECONDS)
        if not engine_task.done():
            engine_task.add_done_callback(lambda task: task.cancelled() or task.exception())
            logger.error("engine ignores its cancellation", run_id=self.run.id)
        await self.record.finish_writes()

    def _fail(self, error: BaseException) -> list[Event]:
        machine = self._output.machine
        self._error = error
        if isinstance(error, EngineError):
            logger.info("run failed", run_id=self.run.id, error=error.code, detail=error.detail)
            return machine.fail(error)
        if isinstance(error, LimitExceededError):
            return machine.fail(EngineError(error.detail))
        if isinstance(error, StoreUnavailableError):
            return machine.fail(_CONVERSATION_UNREADABLE)
        logger.error("engine fault", run_id=self.run.id, exc_info=error)
        return machine.fail(_ENGINE_FAULT)

    # The engine's output.

    async def _answer(self, reading: "asyncio.Task[Turn]") -> None:
        """Append the engine's answer, in several attempts if the provider's stream breaks.

        Cancelling this ends the run.
        """
        first_turn = self._first_turn = await reading
        self._output.transcript.due = tuple(first_turn.due)
        turn: Turn | None = first_turn
        if self._earlier is not None:
            turn = await self._go_on(first_turn, self._earlier.by)
            if turn is None and self._ending is not None:
                return
        output, reports = self._output, self._reports
        while turn is not None:
            reports.ask_model(first_turn)
            may_have_steps = True  # Whether a finished step may not be noted yet.
            try:
                # Here and not in a coroutine of its own, which each delta would have to pass.
                async with closing_deltas(self._engine.run(turn)) as deltas:
                    async for delta in deltas:
                        if may_have_steps and not isinstance(delta, Finished | ToolStarting):
                            may_have_steps = False
                            await self._note_steps()
                        if (waiting := output.put_delta(delta)) is not None:
                            await waiting
                        if type(delta) not in _FRAGMENTS or reports.step is None:
                            may_have_steps = True
                            await self._note(delta)
                        if output.writer.is_full:
                            await output.writer.wait_for_room()
            except EngineError as error:
                if not error.may_pass:
                    raise
                turn = await self._go_on_after(error, first_turn)
            else:
                return

    async def _note_steps(self) -> None:
        """Record the finished steps that the record does not have."""
        steps = self._output.machine.steps
        if len(steps) > len(self.run.notes.steps):
            await self._output.flush()  # Else a crash could lose the end of a finished step.
            await self.record.note_steps(steps)

    async def _note(self, delta: Delta) -> None:
        """Record and report what ``delta`` says beside its events, which are put."""
        machine = self._output.machine
        self._reports.note_output(delta, machine, self.run)
        match delta:
            case ToolStarting(call_id):
                await self._note_tool_call(delta)
                self._reports.begin_tool(machine.call_id(call_id), delta)
            case ToolReturnPart(call_id):
                self._reports.end_tool(machine.call_id(call_id), delta)
            case AnswerKept(upstream_id):
                await self.record.note_upstream(machine.open_step, upstream_id, machine.steps)
            case _:
                pass

    async def _note_tool_call(self, delta: ToolStarting) -> None:
        """Log and record a tool call before its tool starts, which cannot be undone."""
        await self._output.flush()
        machine = self._output.machine
        if self.run.begun_calls is None:
            return  # The engine starts other tools unannounced, so a note would prove nothing.
        call_id = machine.call_id(delta.tool_call_id)
        try:
            await self.record.note_tool_call(call_id, machine.steps, may_repeat=delta.may_repeat)
        except StoreUnavailableError as error:
            raise _TOOL_NOT_NOTED from error

    # Interruptions.

    async def _go_on_after(self, error: EngineError, first_turn: Turn) -> Turn | None:
        """Return the turn that continues after a provider's failure; else raise ``error``."""
        writer, machine = self._output.writer, self._output.machine
        await self._output.flush()
        allowed = self._policy.allows(
            self.run,
            Interruption.PROVIDER,
            last_seq=writer.last_seq,
            finished_steps=len(machine.steps),
            now=self._clock.now(),
        )
        if not allowed or self._decide(first_turn) is None:
            raise error
        failures = 0
        for one in reversed(self.run.attempts):
            if one.interruption != Interruption.PROVIDER:
                break
            failures += 1
        backoff = Backoff(*_RETRY_SECONDS, failures=failures, uniform=self._uniform)
        seconds = max(backoff.next_seconds(), error.retry_after_seconds or 0.0)
        logger.warning(
            "answer interrupted by its provider",
            run_id=self.run.id,
            reason=error.detail,
            again_in_seconds=round(seconds, 3),
        )
        self._report_end(AttemptOutcome.PROVIDER_FAILED, error)
        await self._clock.sleep(seconds)
        self._engine = self._source.engine(self.run)
        return await self._go_on(first_turn, Interruption.PROVIDER)

    async def _go_on(self, first_turn: Turn, by: Interruption) -> Turn | None:
        """Note an attempt that continues the run, and return its turn.

        None, with an ending, if the run cannot be continued; None without one if only its end is
        missing.
        """
        continuation = self._decide(first_turn)
        if continuation is None:
            assert self._earlier is not None
            self.end(self._earlier.ending)
            return None
        after_seq = self._output.writer.last_seq
        await self._output.go_on(continuation)
        attempt = Attempt(
            began_at=self._clock.now(),
            after_seq=after_seq,
            first_seq=self._output.writer.last_seq + 1,
            finished_steps=len(self._output.machine.steps),
            way=continuation.way.value,
            interruption=by.value,
            owner=self.run.owner,
            token=self.run.token,
        )
        await self.record.note_attempt(attempt, self._output.machine.steps)
        self._reports.begin(self.run, attempt, self._output.transcript, self._output.machine)
        logger.info(
            "answer continues",
            run_id=self.run.id,
            way=attempt.way,
            after_seq=after_seq,
            by=by.value,
        )
        return continuation.turn

    def _decide(self, first_turn: Turn) -> Continuation | None:
        return continue_run(
            self.run,
            self._output.transcript,
            first_turn,
            self._engine,
            self._source.tools,
            may_ask=self._policy.may_ask,
        )

    async def _release(self) -> None:
        """Give the run to another process; raise _HandedOverError. Return if none can go on."""
        is_continuable = self._policy.enabled and self.run.turn_plan is not None
        if is_continuable and self._first_turn is not None:
            is_continuable = self._decide(self._first_turn) is not None
        if not is_continuable:
            self._ending = DRAINED
            return
        await self._output.flush()
        await self.record.hand_over(self._output.machine.steps, self._output.log_summary())
        raise _HandedOverError
