"""The course of one run as a pure state machine: an engine's deltas in, events out.

Rules:

- A run is a sequence of steps. A step is one call of the model and has its own id.
- The model's output of a step is one message, or several if it has more than 128 parts. A part is
  an uninterrupted stretch of one kind; parts are numbered from 0 in the order in which they begin.
- A tool's return belongs to the step that called it, and is a message of its own.
- A summary of the conversation is a step and a message of its own.
- With ``stream_tokens`` every delta is an event; without it every complete part is one.
- A turn that leaves calls without the approval that they need ends with ``requires_approval``, even
  if the engine gives no reason.
- Deltas are made storable first (``engine/intake.py``), so every event can be encoded and decoded
  to an equal one.
- The run ends once, with its terminal group: Stopped, Failed if it failed, Usage. Later deltas are
  dropped.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from msgspec import structs

from reattach.domain.clock import Clock
from reattach.domain.errors import EngineError
from reattach.domain.events import (
    CompactionBegan,
    Event,
    Failed,
    Output,
    Ping,
    Place,
    Stopped,
    StopReason,
    Usage,
)
from reattach.domain.ids import (
    MAX_PART_INDEX,
    MessageId,
    new_message_id,
    new_step_id,
    new_uuid,
)
from reattach.domain.limits import MAX_FAILURE_CHARS, MAX_INTEGER
from reattach.domain.messages import (
    Fragment,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
    awaits_approval,
    join_fragments,
)
from reattach.domain.text import storable_text
from reattach.engine.base import (
    AnswerKept,
    Compacted,
    Compacting,
    Delta,
    Finished,
    StepFinished,
    ToolStarting,
)
from reattach.engine.intake import Intake
from reattach.records.base import StepRecord


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run's output when an attempt was interrupted."""

    steps: Sequence[StepRecord] = ()
    """The finished steps."""
    step_messages: Sequence[MessageId | None] = ()
    """The message of the model's output for each of them."""
    step: StepRecord | None = None
    """The step that had not finished."""
    message_id: MessageId | None = None
    """Its newest message of the model."""
    next_index: int = 0
    """The index of the next part of that message."""
    part: tuple[Place, Fragment] | None = None
    """The part at its end, which may grow, with a fragment of its kind."""
    call_ids: Collection[str] = ()
    """The ids of all calls of the run."""
    awaiting_approval: Collection[str] = ()
    """Those that wait for an approval."""


class RunMachine:
    """The state machine of one run. Methods return the events to append, in order.

    ``progress`` is that of earlier attempts at the run.
    """

    def __init__(
        self, clock: Clock, *, stream_tokens: bool, progress: Progress | None = None
    ) -> None:
        progress = progress or Progress()
        self._clock = clock
        self._stream_tokens = stream_tokens
        self._intake = Intake(progress.call_ids)
        self._message_id = progress.message_id
        if progress.step is not None and progress.message_id is None:  # It has only returns.
            self._message_id = new_message_id()
        self._step = progress.step
        self._part = _Part(*progress.part) if progress.part and stream_tokens else None
        self._index = progress.next_index
        self._finish_reason = StopReason.END_TURN
        self._awaiting_approval = set(progress.awaiting_approval)
        self.steps = list(progress.steps)
        self._step_messages = list(progress.step_messages)
        """The message of the model's output for each finished step."""
        self._earlier_steps = len(self.steps)
        self.ended = False

    def ping(self) -> list[Event]:
        """Return the first event of a run whose sender asked for pings."""
        return [Ping(f"ping-{new_uuid()}", self._now())]

    def on_delta(self, delta: Delta) -> list[Event]:
        """Return the events that ``delta`` adds to the log.

        Raises:
            TypeError: It is not a delta. Nothing is added.
            ValueError: A member of the delta has no valid value. Nothing is added.
        """
        if self.ended:
            return []
        if type(delta) is TextPart and self._intake.is_plain(delta.text):
            return self._add_to_part(delta)
        return [event for one in self._intake.take(delta) for event in self._add(one)]

    def place_of_more(self, text: object) -> Place | None:
        """Return the place of a text that is an event as it is, because it continues a text.

        Most deltas are. None: ``on_delta`` says what it becomes.
        """
        part = self._part
        if part is None or part.type is not TextPart or not self._stream_tokens or self.ended:
            return None
        return part.place if self._intake.is_plain(text) else None

    @property
    def open_step(self) -> StepRecord | None:
        """The step that has begun and not finished."""
        return self._step

    def close_step(self) -> None:
        """Let the step that was interrupted end here; its usage is unknown."""
        if self._step is not None:
            self._finish_step(Usage())

    def call_id(self, given: str) -> str:
        """Return the id in the log of the tool call that the engine calls ``given``."""
        return self._intake.call_id(given)

    def _add(self, delta: Delta) -> list[Event]:
        match delta:
            case StepFinished(broke_off=True):  # It goes on in the next attempt, or the run ends.
                self._step = self._with_usage(self._begin_step(), delta.usage)
                return []
            case StepFinished():
                return self._finish_step(delta.usage)
            case Finished():
                self._finish_reason = delta.reason
                return []
            case Compacting():
                return [*self._flush(), self._on_compacting(delta)]
            case Compacted():
                return self._on_compacted(delta)
            case ToolStarting():
                return self._flush()
            case AnswerKept():
                self._begin_step()
                return []
            case ToolReturnPart():
                self._awaiting_approval.discard(delta.tool_call_id)
                return [*self._flush(), self._on_tool_return(delta)]
            case ToolCallDelta(needs_approval=True):
                self._awaiting_approval.add(delta.tool_call_id)
                return self._add_to_part(delta)
            case _:
                return self._add_to_part(delta)

    def finish(self) -> list[Event]:
        """End the run after the engine: return its last parts and the terminal group."""
        reason = self._finish_reason
        if reason is StopReason.END_TURN and self._awaiting_approval:
            reason = StopReason.REQUIRES_APPROVAL
        return self.stop(reason)

    def fail(self, error: EngineError) -> list[Event]:
        """End the run after an engine's failure: return the parts so far and the terminal group."""
        failure = Failed(error.code, error.detail, None)
        try:
            reason = StopReason(error.stop_reason)
        except ValueError:
            reason = StopReason.ERROR
        return self.stop(reason, failure)

    def stop(self, reason: StopReason, failure: Failed | None = None) -> list[Event]:
        """End the run for ``reason``: return the parts so far and the terminal group."""
        if self.ended:
            return []
        events = [event for held in self._intake.release() for event in self._add(held)]
        events += self._flush()
        if self._step is not None:
            self.steps.append(self._step)
            self._step = None
        self.ended = True
        events.append(Stopped(reason))
        if failure is not None:
            events.append(_storable_failure(failure))
        events.append(total_usage([step.usage for step in self.steps], len(self.steps)))
        return events

    def _add_to_part(self, fragment: Fragment) -> list[Event]:
        events: list[Event] = []
        if self._part is not None and not self._part.accepts(fragment):
            events = self._flush()
        if self._part is None:
            self._part = _Part(self._next_place(), fragment)
        if self._stream_tokens:
            events.append(Output(self._part.place, (fragment,)))
        else:
            self._part.fragments.append(fragment)
        return events

    def _flush(self) -> list[Event]:
        """Complete the current part."""
        part, self._part = self._part, None
        if part is None or self._stream_tokens:
            return []
        return [Output(part.place, join_fragments(part.fragments))]

    def _finish_step(self, usage: Usage, *, model: str | None = None) -> list[Event]:
        events = self._flush()
        step = self._with_usage(self._begin_step(), usage)
        self.steps.append(step if model is None else replace(step, model=model))
        self._step_messages.append(self._message_id)
        self._step = None
        self._message_id = None
        return events

    @staticmethod
    def _with_usage(step: StepRecord, usage: Usage) -> StepRecord:
        """Add usage to that of earlier attempts at the step."""
        if step.usage != Usage():
            usage = total_usage([step.usage, usage], 1)
        return replace(step, usage=usage)

    def _on_compacting(self, delta: Compacting) -> CompactionBegan:
        return CompactionBegan(
            new_uuid(),
            self._begin_step().id,
            self._now(),
            delta.trigger,
            delta.context_tokens,
            delta.context_window_tokens,
        )

    def _on_compacted(self, delta: Compacted) -> list[Event]:
        summary, step = delta.summary, delta.kept_from_step
        if step is not None:
            step += self._earlier_steps
            kept_from = self._step_messages[step] if step < len(self._step_messages) else None
            summary = structs.replace(summary, kept_from=kept_from)
        events = self._flush()
        events.append(Output(self._next_place(), (summary,)))
        return [*events, *self._finish_step(delta.usage, model=delta.model)]

    def _on_tool_return(self, part: ToolReturnPart) -> Output:
        step = self.steps[-1] if self._step is None and self.steps else self._begin_step()
        return Output(Place(new_message_id(), step.id, 0, self._now()), (part,))

    def _begin_step(self) -> StepRecord:
        if self._step is None:
            self._step = StepRecord(new_step_id(), self._now(), Usage())
            self._message_id = new_message_id()
            self._index = 0
        return self._step

    def _next_place(self) -> Place:
        step = self._begin_step()
        assert self._message_id is not None
        if self._index > MAX_PART_INDEX:
            self._message_id = new_message_id()
            self._index = 0
        place = Place(self._message_id, step.id, self._index, self._now())
        self._index += 1
        return place

    def _now(self) -> datetime:
        """Return the time in whole seconds, like the wire, so that decoded events are equal."""
        return self._clock.now().replace(microsecond=0)


class _Part:
    """The current part; without token streaming, with its fragments."""

    def __init__(self, place: Place, first: Fragment) -> None:
        self.place = place
        self.type = type(first)
        self._awaits_approval = awaits_approval(first)
        self.fragments: list[Fragment] = []

    def accepts(self, fragment: Fragment) -> bool:
        """Whether the fragment continues this part."""
        if type(fragment) is not self.type:
            return False
        return self.type is not ToolCallDelta or awaits_approval(fragment) is self._awaits_approval


def total_usage(usages: Sequence[Usage], step_count: int) -> Usage:
    """Add up the usage of the steps. A count that no step reported stays unknown."""

    def total(values: Iterable[int]) -> int:
        return min(sum(values), MAX_INTEGER)

    def add(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return total(known) if known else None

    return Usage(
        completion_tokens=total(usage.completion_tokens for usage in usages),
        prompt_tokens=total(usage.prompt_tokens for usage in usages),
        total_tokens=total(usage.total_tokens for usage in usages),
        step_count=step_count,
        cached_input_tokens=add([usage.cached_input_tokens for usage in usages]),
        cache_write_tokens=add([usage.cache_write_tokens for usage in usages]),
        reasoning_tokens=add([usage.reasoning_tokens for usage in usages]),
        context_tokens=usages[-1].context_tokens if usages else None,
    )


def _storable_failure(failure: Failed) -> Failed:
    detail = failure.detail
    return Failed(
        storable_text(str(failure.error_type)),
        storable_text(str(failure.message))[:MAX_FAILURE_CHARS],
        None if detail is None else storable_text(str(detail))[:MAX_FAILURE_CHARS],
    )
