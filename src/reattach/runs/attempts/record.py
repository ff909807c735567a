"""The record of an active run, as its owner writes it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from msgspec import structs

from reattach.domain.backoff import until_available
from reattach.domain.clock import Clock
from reattach.domain.errors import FencedError
from reattach.domain.events import RunStatus
from reattach.records.base import Attempt, LogSummary, Run, RunNotes, StepRecord
from reattach.records.runs.hidden_events import HiddenEvent
from reattach.records.runs.runs import Runs


class OwnedRun:
    """A run of this process. ``run`` is its record as far as this process has written it.

    Methods retry while the store does not answer.

    Raises, from every method:
        FencedError: The run has another owner, or has ended.
        StoreUnavailableError: The store did not answer for APPEND_RETRY_SECONDS.
    """

    def __init__(self, run: Run, runs: Runs, clock: Clock) -> None:
        self.run = run
        self._runs = runs
        self._clock = clock
        self._unfinished: tuple[asyncio.Task[bool], dict[str, Any]] | None = None
        """A write whose caller was cancelled, and the values that it writes."""

    def not_owner(self) -> FencedError:
        return FencedError(f"{self.run.id} has another owner, or none.")

    async def mark_running(self, *, announces_tools: bool) -> None:
        """Record that the log is open; ``announces_tools``: and that no tool call has begun."""
        mark = partial(self._runs.mark_running, notes_begun=announces_tools)
        begun = () if announces_tools else None
        # Nothing cancels a run before its engine begins, so this needs no task of its own.
        is_owner = await until_available(self._clock, partial(mark, self.run.id, self.run.token))
        self._take(is_owner, status=RunStatus.RUNNING, begun_calls=begun)

    async def note_tool_call(
        self, call_id: str, steps: Sequence[StepRecord], *, may_repeat: bool
    ) -> None:
        """Record that a tool call begins, before it does. Once cancelled, it must not begin."""
        begun = (*(self.run.begun_calls or ()), call_id)
        notes = self._with_steps(steps)
        # A call that begins again counts as its tool is now.
        others = tuple(one for one in notes.repeatable_calls if one != call_id)
        repeatable = (*others, call_id) if may_repeat else others
        notes = structs.replace(notes, repeatable_calls=repeatable)
        note = partial(self._runs.note_begun, call_ids=begun, notes=notes)
        await self._write(note, begun_calls=begun, notes=notes)

    async def note_steps(self, steps: Sequence[StepRecord]) -> None:
        """Record the finished steps."""
        await self._note(self._with_steps(steps))

    async def note_upstream(
        self, step: StepRecord | None, upstream_id: str, steps: Sequence[StepRecord]
    ) -> None:
        """Record the provider's id of the answer of a step."""
        step_id = None if step is None else step.id
        notes = self._with_steps(steps)
        await self._note(structs.replace(notes, upstream_step=step_id, upstream_id=upstream_id))

    async def note_attempt(self, attempt: Attempt, steps: Sequence[StepRecord]) -> None:
        """Record an attempt, before it begins."""
        attempts = (*self.run.attempts, attempt)
        notes = self._with_steps(steps)
        note = partial(self._runs.note, notes=notes, attempts=attempts)
        await self._write(note, notes=notes, attempts=attempts)

    async def keep_hidden(self, events: Sequence[HiddenEvent]) -> None:
        """Keep events that the log does not get."""
        await self._write(partial(self._runs.keep_hidden, events=events))

    async def hand_over(self, steps: Sequence[StepRecord], log: LogSummary) -> None:
        """Let another process own the run. Nothing may be written to its log any more."""
        notes = self._with_steps(steps)
        # The records may have a call whose note was cancelled, so that its tool never began.
        hand_over = partial(
            self._runs.hand_over, notes=notes, call_ids=self.run.begun_calls, log=log
        )
        await self._write(hand_over)

    async def finish_writes(self) -> None:
        """Wait for a write whose caller was cancelled, because a later one must not overtake it.

        ``run`` then has its values. A tool call is the exception: its tool never began.
        """
        if self._unfinished is None:
            return
        (writing, values), self._unfinished = self._unfinished, None
        await asyncio.wait({writing})
        if not writing.cancelled() and writing.exception() is None and writing.result():
            values.pop("begun_calls", None)
            self.run = structs.replace(self.run, **values)

    def _with_steps(self, steps: Sequence[StepRecord]) -> RunNotes:
        return structs.replace(self.run.notes, steps=tuple(steps), handed_over=False)

    async def _note(self, notes: RunNotes) -> None:
        await self._write(partial(self._runs.note, notes=notes), notes=notes)

    async def _write(self, write: Callable[..., Awaitable[bool]], **values: Any) -> None:
        operation = partial(write, self.run.id, self.run.token)
        writing = asyncio.create_task(until_available(self._clock, operation))
        try:
            # The store would carry it out even if this stopped waiting for it.
            is_owner = await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._unfinished = writing, values
            raise
        self._take(is_owner, **values)

    def _take(self, is_owner: bool, **values: Any) -> None:
        """Note what a write has set."""
        if not is_owner:
            raise self.not_owner()
        self.run = structs.replace(self.run, **values)
