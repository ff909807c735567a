"""Driving one run in this process: from the engine to the log, to the settlement."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import structlog

from reattach.domain.backoff import until_available
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
from reattach.domain.events import Event
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.limits import DELTA_BYTES, ENGINE_STOP_SECONDS, RUN_LOG_BYTES
from reattach.domain.messages import part_chars
from reattach.engine.base import Compacted, Delta, Engine, ToolStarting, Turn, closing_deltas
from reattach.log.base import Log, RunWriter
from reattach.records.base import Run, Settlement
from reattach.records.runs.runs import Runs
from reattach.runs.endings import LOG_LOST, Ending
from reattach.runs.machine import RunMachine
from reattach.runs.transcript import Transcript
from reattach.wire.letta import Encoder, MessageType, message_type

logger = structlog.get_logger(__name__)


_ALL_TYPES = frozenset(get_args(MessageType))
_COMPACTION_TYPES = frozenset({"event_message", "summary_message"})


@dataclass(frozen=True, slots=True)
class Representation:
    """The representation of a run that its sender asked for."""

    stream_tokens: bool = False
    include_pings: bool = True
    message_types: frozenset[MessageType] | None = None
    """Only messages of these types are logged; None: all."""
    compaction_messages: bool = False
    """Whether events of compactions are logged."""

    @property
    def hidden_types(self) -> frozenset[str]:
        """The types of messages that are not logged."""
        types = self.message_types
        hidden = frozenset() if types is None else _ALL_TYPES - types
        return hidden if self.compaction_messages else hidden | _COMPACTION_TYPES


_ENGINE_FAULT = EngineError("An error occurred during agent execution.")
_TOOL_NOT_NOTED = EngineError(
    "The records do not answer, so the tool did not run. Send again later, with a new OTID."
)
_CONVERSATION_UNREADABLE = EngineError(
    "The conversation could not be read. Send the message again, with a new OTID."
)


class RunDriver:
    """Drives one run from its creation to its settlement, whether anybody reads it or not.

    ``opened`` is set when the log can be followed. ``done`` is set when the run is ``settled``,
    when another owner has it, or when it was ``given_up`` because the store failed; recovery then
    ends it.
    """

    def __init__(
        self,
        run: Run,
        representation: Representation,
        *,
        engine: Engine,
        log: Log,
        records: Runs,
        clock: Clock,
        aliases: Sequence[str],
        make_turn: Callable[[], Awaitable[Turn]],
        settle: Callable[[Run, Settlement], Awaitable[None]],
    ) -> None:
        self.run = run
        self.admitted = False
        """Whether the records have the run with this driver's process as its owner."""
        self.opened = asyncio.Event()
        self.done = asyncio.Event()
        self.settled = False
        self.given_up = False
        self._aliases = aliases
        self._records = records
        self._disowned = False
        self._include_pings = representation.include_pings
        self._hidden_types = representation.hidden_types
        self._engine = engine
        self._log = log
        self._clock = clock
        self._make_turn = make_turn
        self._settle = settle
        self._machine = RunMachine(clock, stream_tokens=representation.stream_tokens)
        self._transcript = Transcript()
        self._transcript.begun = () if engine.announces_tools else None
        self._ending: Ending | None = None
        self._interrupted = asyncio.Event()
        self._encoder = Encoder(run.id)
        self._writer: RunWriter
        """Set when the log is open; another one when the log was lost."""

    def end(self, ending: Ending) -> None:
        """End the run soon. Idempotent: only the first ending counts, and none after the end."""
        if self._ending is None:
            self._ending = ending
            self._interrupted.set()

    def disown(self) -> None:
        """Stop the engine and write nothing more, because another process owns the run."""
        self._disowned = True
        self._interrupted.set()

    async def drive(self) -> None:
        """Drive the run until it is settled. Raises nothing but its own cancellation."""
        try:
            await self._drive()
        except FencedError:
            logger.warning("run taken over by another process", run_id=self.run.id)
        except (LogError, StoreUnavailableError) as error:
            self.given_up = True
            logger.warning("run given up", run_id=self.run.id, reason=error.detail)
        except Exception:
            self.given_up = True
            logger.exception("run given up", run_id=self.run.id)
        finally:
            self.opened.set()
            self.done.set()

    async def _drive(self) -> None:
        labels = {"run_id": self.run.id, "tenant": self.run.tenant, "model": self.run.model}
        began = self._clock.monotonic_seconds()
        logger.info("run began", **labels)
        # Read while the log opens: no other run can add to the thread now.
        turn = asyncio.create_task(
            until_available(self._clock, self._make_turn), name=f"turn {self.run.id}"
        )
        turn.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await self._open(first_seq=FIRST_SEQ)
            mark_running = partial(
                self._records.mark_running,
                self.run.id,
                self.run.token,
                notes_begun=self._engine.announces_tools,
            )
            if not await until_available(self._clock, mark_running):
                raise _not_owner(self.run)
            self.opened.set()
            await self._write_answer(turn)
        finally:
            turn.cancel()
        settlement = self._transcript.settlement(self.run, self._machine.steps, self._clock.now())
        await self._settle(self.run, settlement)
        self.settled = True
        logger.info(
            "run ended",
            **labels,
            outcome=settlement.stop_reason.value,
            events=self._writer.last_seq,
            seconds=round(self._clock.monotonic_seconds() - began, 3),
        )

    async def _write_answer(self, turn: "asyncio.Task[Turn]") -> None:
        """Write the engine's answer and the terminal group into the log, and close it."""
        if self._include_pings:
            self._put(self._machine.ping())
        try:
            terminal = await self._run_engine(turn)
            self._record(terminal)
            await self._writer.close(self._frames(terminal))
        except (LogNotFoundError, SeqMismatchError) as error:
            logger.error("log lost by its store", run_id=self.run.id, reason=error.detail)  # noqa: TRY400
            await self._close_lost_log()
        finally:
            await self._writer.abandon()

    async def _open(self, *, first_seq: Seq) -> None:
        self._writer = await until_available(
            self._clock,
            lambda: self._log.open(
                self.run.id, self.run.token, first_seq=first_seq, aliases=self._aliases
            ),
        )
        self._writer.clock = self._clock
        self._writer.on_failure = self._interrupted.set

    def _put(self, events: list[Event]) -> None:
        self._writer.put(self._frames(events))

    def _frames(self, events: list[Event]) -> list[bytes]:
        """Return the frames of the visible events for the log's next seqs."""
        visible = [one for one in events if message_type(one) not in self._hidden_types]
        return self._encoder.frames(visible, after_seq=self._writer.last_seq)

    async def _close_lost_log(self) -> None:
        """Close a log that its store lost, at a seq after everything a reader may have seen."""
        await self._open(first_seq=self._writer.last_seq + 1)
        ending = self._ending or LOG_LOST
        terminal = self._machine.stop(ending.reason, ending.failure)
        if not terminal:  # The terminal group or the event before it was lost.
            terminal = LOG_LOST.terminal_group(self._transcript.usage)
        self._record(terminal)
        await self._writer.close(self._frames(terminal))

    async def _run_engine(self, turn: "asyncio.Task[Turn]") -> list[Event]:
        """Run the engine until it ends or is interrupted, and return the terminal group."""
        engine_task = asyncio.create_task(self._append_deltas(turn), name=f"engine {self.run.id}")
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({engine_task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if not engine_task.done():
                await self._stop(engine_task)
        finally:
            interrupted.cancel()
            engine_task.cancel()
        if self._disowned:
            raise _not_owner(self.run)
        if self._writer.failure is not None:
            raise self._writer.failure
        if self._ending is not None:
            return self._machine.stop(self._ending.reason, self._ending.failure)
        if engine_task.cancelled():  # by the engine itself
            return self._fail(asyncio.CancelledError())
        error = engine_task.exception()
        if isinstance(error, FencedError):
            raise error
        return self._machine.finish() if error is None else self._fail(error)

    async def _stop(self, engine_task: asyncio.Task[None]) -> None:
        """Cancel the engine. If it ignores that, continue without it."""
        engine_task.cancel()
        await asyncio.wait({engine_task}, timeout=ENGINE_STOP_SECONDS)
        if not engine_task.done():
            engine_task.add_done_callback(lambda task: task.cancelled() or task.exception())
            logger.error("engine ignores its cancellation", run_id=self.run.id)

    def _fail(self, error: BaseException) -> list[Event]:
        if isinstance(error, EngineError):
            logger.info("run failed", run_id=self.run.id, error=error.code, detail=error.detail)
            return self._machine.fail(error)
        if isinstance(error, LimitExceededError):
            return self._machine.fail(EngineError(error.detail))
        if isinstance(error, StoreUnavailableError):
            return self._machine.fail(_CONVERSATION_UNREADABLE)
        logger.error("engine fault", run_id=self.run.id, exc_info=error)
        return self._machine.fail(_ENGINE_FAULT)

    async def _append_deltas(self, reading: "asyncio.Task[Turn]") -> None:
        """Append the events of the engine's deltas. Cancelling this ends the run."""
        turn = await reading
        self._transcript.due = tuple(turn.due)
        held_bytes = 0
        async with closing_deltas(self._engine.run(turn)) as deltas:
            async for delta in deltas:
                # Without token streaming, deltas pile up in memory before the log sees them.
                held_bytes += _size_bytes(delta)
                if held_bytes > RUN_LOG_BYTES:
                    raise LimitExceededError(
                        f"The answer exceeds {RUN_LOG_BYTES} bytes, the most that a run may hold."
                    )
                events = self._machine.on_delta(delta)
                self._put(events)
                self._record(events)  # After ``put``: the transcript must not be ahead of the log.
                if isinstance(delta, ToolStarting):
                    await self._note_tool_call(self._machine.call_id(delta.tool_call_id))
                if self._writer.is_full:
                    await self._writer.wait_for_room()

    async def _note_tool_call(self, call_id: str) -> None:
        """Log and record a tool call before its tool starts, which cannot be undone."""
        await self._writer.flush()
        if self._transcript.begun is None:
            return  # The engine starts other tools unannounced, so a note would prove nothing.
        begun = (*self._transcript.begun, call_id)
        try:
            note = partial(self._records.note_begun, self.run.id, self.run.token, begun)
            if not await until_available(self._clock, note):
                raise _not_owner(self.run)
        except StoreUnavailableError as error:
            raise _TOOL_NOT_NOTED from error
        self._transcript.begun = begun

    def _record(self, events: list[Event]) -> None:
        for event in events:
            self._transcript.add(event)


def _not_owner(run: Run) -> FencedError:
    return FencedError(f"{run.id} has another owner, or none.")


def _size_bytes(delta: Delta) -> int:
    """Estimate the memory of a delta."""
    return DELTA_BYTES + part_chars(delta.summary if isinstance(delta, Compacted) else delta)
