"""The work on one run in this process: engine to log, to the end, whoever is reading."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

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
from reattach.domain.events import AssistantText, CompactionBegan, Event, Stopped, Summarized
from reattach.domain.limits import DELTA_BYTES, ENGINE_STOP_SECONDS, RUN_LOG_BYTES
from reattach.engine.base import (
    Compacted,
    Delta,
    Engine,
    ReasoningDelta,
    ReasoningHidden,
    TextDelta,
    ToolCallDelta,
    ToolReturn,
    ToolStarting,
    Turn,
    closing_deltas,
)
from reattach.log.base import Head, Log
from reattach.records.base import Run, Settlement
from reattach.runs.appender import Appender
from reattach.runs.endings import LOG_LOST, Ending
from reattach.runs.machine import RunMachine
from reattach.runs.retry import until_available
from reattach.runs.transcript import Transcript
from reattach.wire.letta import MessageType, message_type

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How a run shows itself, as its sender asked."""

    stream_tokens: bool = False
    include_pings: bool = True
    message_types: frozenset[MessageType] | None = None
    """Only messages of these types get into the log; None: all."""
    compaction_messages: bool = False
    """Whether compactions get into it."""


_OF_COMPACTIONS = (CompactionBegan, Summarized)
_ENGINE_FAULT = EngineError("An error occurred during agent execution.")
_UNNOTED = EngineError(
    "The records do not answer, so the tool did not run. Send again later, with a new OTID."
)
_UNREADABLE = EngineError(
    "The conversation could not be read. Send the message again, with a new OTID."
)


class RunDriver:
    """Owns one run from its creation to its settlement.

    ``opened`` is set when the log can be followed, ``done`` when the run is ``settled``, a newer
    owner has it, or it was given up (``gave_up``: the store is gone; recovery ends the run then).
    ``mark_running`` says in the records that there is a log, ``note_begun`` which calls' tools have
    begun; False if the run is another's.
    """

    def __init__(
        self,
        run: Run,
        options: Options,
        *,
        engine: Engine,
        log: Log,
        clock: Clock,
        aliases: Sequence[str],
        make_turn: Callable[[], Awaitable[Turn]],
        mark_running: Callable[[], Awaitable[bool]],
        note_begun: Callable[[Sequence[str]], Awaitable[bool]],
        settle: Callable[[Run, Settlement], Awaitable[None]],
    ) -> None:
        self.run = run
        self.admitted = False
        """The records have the run, and it is this driver's."""
        self.opened = asyncio.Event()
        self.done = asyncio.Event()
        self.settled = False
        self.gave_up = False
        self._aliases = aliases
        self._mark_running = mark_running
        self._note_begun = note_begun
        self._disowned = False
        self._options = options
        self._engine = engine
        self._log = log
        self._clock = clock
        self._make_turn = make_turn
        self._settle = settle
        self._machine = RunMachine(clock, stream_tokens=options.stream_tokens)
        self._transcript = Transcript()
        self._transcript.begun = () if engine.announces_tools else None
        self._ending: Ending | None = None
        self._interrupted = asyncio.Event()
        self._appender: Appender | None = None

    def end(self, ending: Ending) -> None:
        """End the run soon. Idempotent; the first ending counts, and none after the end."""
        if self._ending is None:
            self._ending = ending
            self._interrupted.set()

    def disown(self) -> None:
        """Stop the engine and write nothing more: another process has the run, or will have it."""
        self._disowned = True
        self._interrupted.set()

    async def drive(self) -> None:
        """Work on the run until it is settled. Never raises but on its own cancellation."""
        try:
            await self._work()
        except FencedError:
            logger.warning("run taken over by another process", run_id=self.run.id)
        except (LogError, StoreUnavailableError) as error:
            self.gave_up = True
            logger.warning("run given up", run_id=self.run.id, reason=error.detail)
        except Exception:
            self.gave_up = True
            logger.exception("run given up", run_id=self.run.id)
        finally:
            if self._appender is not None:
                await self._appender.abandon()
            self.opened.set()
            self.done.set()

    async def _work(self) -> None:
        told = {"run_id": self.run.id, "tenant": self.run.tenant, "model": self.run.model}
        began = self._clock.monotonic_seconds()
        logger.info("run began", **told)
        # Read meanwhile: nobody else adds to the thread now.
        turn = asyncio.create_task(
            until_available(self._clock, self._make_turn), name=f"turn {self.run.id}"
        )
        turn.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            head = await self._open(first_seq=1)
            if not await until_available(self._clock, self._mark_running):
                raise _disowned(self.run)
            self._appender = self._appender_after(head.last_seq)
            self.opened.set()
            await self._answered(turn)
        finally:
            turn.cancel()
        settlement = self._transcript.settlement(self.run, self._machine.steps, self._clock.now())
        await self._settle(self.run, settlement)
        self.settled = True
        logger.info(
            "run ended",
            **told,
            outcome=settlement.stop_reason.value,
            events=self._appender.last_seq,
            seconds=round(self._clock.monotonic_seconds() - began, 3),
        )

    async def _answered(self, turn: "asyncio.Task[Turn]") -> None:
        """Let the engine answer into the log, to its end."""
        assert self._appender is not None
        if self._options.include_pings:
            self._appender.put(self._machine.ping())
        try:
            terminal = await self._drive(turn)
            self._fold(terminal)
            await self._appender.close(self._visible(terminal))
        except (LogNotFoundError, SeqMismatchError) as error:
            logger.error("log lost by its store", run_id=self.run.id, reason=error.detail)  # noqa: TRY400
            await self._close_anew(self._appender.last_seq + 1)

    async def _open(self, *, first_seq: int) -> Head:
        return await until_available(
            self._clock,
            lambda: self._log.open(
                self.run.id, self.run.token, first_seq=first_seq, aliases=self._aliases
            ),
        )

    def _appender_after(self, last_seq: int) -> Appender:
        return Appender(
            self._log,
            self.run.id,
            self.run.token,
            last_seq=last_seq,
            clock=self._clock,
            on_failure=self._interrupted.set,
        )

    async def _close_anew(self, first_seq: int) -> None:
        """Give a log that was lost its end, behind everything that a reader may have had of it."""
        head = await self._open(first_seq=first_seq)
        ending = self._ending or LOG_LOST
        terminal = self._machine.stop(ending.reason, ending.failure)
        if not terminal:  # The terminal group itself was lost, or what came just before it.
            assert LOG_LOST.failure is not None
            terminal = [Stopped(LOG_LOST.reason), LOG_LOST.failure, self._transcript.usage]
        self._fold(terminal)
        await self._appender_after(head.last_seq).close(self._visible(terminal))

    async def _drive(self, turn: "asyncio.Task[Turn]") -> list[Event]:
        """Let the engine answer, and return what ends the run."""
        driving = asyncio.create_task(self._answer(turn), name=f"engine {self.run.id}")
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({driving, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not driving.done():
                await self._stop(driving)
        finally:
            interrupted.cancel()
            driving.cancel()
        assert self._appender is not None
        if self._disowned:
            raise _disowned(self.run)
        if self._appender.failure is not None:
            raise self._appender.failure
        if self._ending is not None:
            return self._machine.stop(self._ending.reason, self._ending.failure)
        if driving.cancelled():  # by something within the engine
            return self._failed(asyncio.CancelledError())
        error = driving.exception()
        if isinstance(error, FencedError):
            raise error
        return self._machine.finish() if error is None else self._failed(error)

    async def _stop(self, driving: asyncio.Task[None]) -> None:
        """Cancel the engine, and go on without it if it does not obey."""
        driving.cancel()
        await asyncio.wait({driving}, timeout=ENGINE_STOP_SECONDS)
        if not driving.done():
            driving.add_done_callback(lambda task: task.cancelled() or task.exception())
            logger.error("engine ignores its cancellation", run_id=self.run.id)

    def _failed(self, error: BaseException) -> list[Event]:
        if isinstance(error, EngineError):
            logger.info("run failed", run_id=self.run.id, error=error.code, detail=error.detail)
            return self._machine.fail(error)
        if isinstance(error, LimitExceededError):
            return self._machine.fail(EngineError(error.detail))
        if isinstance(error, StoreUnavailableError):
            return self._machine.fail(_UNREADABLE)
        logger.error("engine fault", run_id=self.run.id, exc_info=error)
        return self._machine.fail(_ENGINE_FAULT)

    async def _answer(self, reading: "asyncio.Task[Turn]") -> None:
        """Feed the engine's deltas to the log. Cancelling it is how a run is ended."""
        assert self._appender is not None
        turn = await reading
        self._transcript.due = tuple(turn.due)
        held_bytes = 0
        async with closing_deltas(self._engine.run(turn)) as deltas:
            async for delta in deltas:
                # What is not streamed as it comes is in no log yet, but in memory all the same.
                held_bytes += _size_bytes(delta)
                if held_bytes > RUN_LOG_BYTES:
                    raise LimitExceededError(
                        f"An answer may have {RUN_LOG_BYTES} bytes; this one has reached that."
                    )
                events = self._machine.on_delta(delta)
                self._appender.put(self._visible(events))
                self._fold(events)  # After the log took them: no transcript has what no log has.
                if isinstance(delta, ToolStarting):
                    await self._begin(self._machine.call_id(delta.tool_call_id))
                if self._appender.is_full:
                    await self._appender.room()

    async def _begin(self, call_id: str) -> None:
        """Let a tool begin. What it does can not be taken back: its call has to be known before."""
        assert self._appender is not None
        await self._appender.flush()
        if self._transcript.begun is None:
            return  # Others begin without a word, so that to note this one would tell nothing.
        begun = (*self._transcript.begun, call_id)
        try:
            if not await until_available(self._clock, lambda: self._note_begun(begun)):
                raise _disowned(self.run)
        except StoreUnavailableError as error:
            raise _UNNOTED from error
        self._transcript.begun = begun

    def _fold(self, events: list[Event]) -> None:
        for event in events:
            self._transcript.add(event)

    def _visible(self, events: list[Event]) -> list[Event]:
        types = self._options.message_types
        if types is None and len(events) == 1 and type(events[0]) is AssistantText:
            return events
        if not self._options.compaction_messages:
            events = [one for one in events if not isinstance(one, _OF_COMPACTIONS)]
        if types is None:
            return events
        kinds = ((event, message_type(event)) for event in events)
        return [event for event, kind in kinds if kind is None or kind in types]


def _disowned(run: Run) -> FencedError:
    return FencedError(f"{run.id} has another owner, or none.")


def _size_bytes(delta: Delta) -> int:
    """The memory that a delta takes, roughly."""
    match delta:
        case TextDelta(text):  # First, as most are.
            return DELTA_BYTES + len(text)
        case ReasoningDelta(text, signature):
            return DELTA_BYTES + len(text) + len(signature or "")
        case ToolCallDelta(call_id, name, arguments):
            return DELTA_BYTES + len(call_id) + len(name or "") + len(arguments or "")
        case ToolReturn(output=text, stdout=stdout, stderr=stderr):
            return DELTA_BYTES + len(text) + sum(map(len, (*(stdout or ()), *(stderr or ()))))
        case ReasoningHidden(text=text):
            return DELTA_BYTES + len(text or "")
        case Compacted(summary=text):
            return DELTA_BYTES + len(text)
        case _:
            return DELTA_BYTES
