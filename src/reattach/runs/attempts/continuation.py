"""How an interrupted run goes on, decided from its events, its notes and its engine. Pure.

PROTOCOL.md has the table of the cases (P19).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

from msgspec import structs

from reattach.domain.context import in_context
from reattach.domain.ids import StepId, new_message_id
from reattach.domain.messages import (
    ContentPart,
    Fragment,
    HiddenReasoningPart,
    Message,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
    ToolReturnPart,
)
from reattach.engine.base import Engine, Partial, Turn, Way
from reattach.records.base import Run
from reattach.runs.machine import Progress
from reattach.runs.transcript import Transcript

_INCOMPLETE: Final = (
    "The answer was interrupted within or right after this call; the tool did not run."
)
_UNKNOWN: Final = (
    "The server was interrupted while this tool ran; whether it did its work is not known."
)
_INTERRUPTED: Final = (_INCOMPLETE, _UNKNOWN)
_ASK: Final = (
    "Your answer was cut off by a technical fault. Continue it exactly where it stops. Do not "
    "repeat any of it, and do not mention the interruption."
)


@dataclass(frozen=True, slots=True)
class Continuation:
    """The next attempt at an interrupted run."""

    way: Way
    turn: Turn | None
    """The turn for the engine; None if only the end of the run is missing."""
    progress: Progress
    """The state of the output, to which ``returns`` are added next."""
    returns: Sequence[ToolReturnPart] = ()
    """Error returns to log first, for calls that were interrupted."""
    closes_step: bool = False
    """Whether the step that had not finished ends after these."""


@dataclass(slots=True)
class _Step:
    """One step of the run so far."""

    id: StepId
    messages: list[Message] = field(default_factory=list)
    finished: bool = True

    @property
    def is_summary(self) -> bool:
        return any(message.role is Role.SUMMARY for message in self.messages)

    @property
    def answer(self) -> list[Message]:
        """The model's messages."""
        return [one for one in self.messages if one.role is Role.ASSISTANT]

    @property
    def calls(self) -> list[ToolCallPart]:
        return [part for part in self._parts() if isinstance(part, ToolCallPart)]

    @property
    def returns(self) -> list[ToolReturnPart]:
        called = {call.tool_call_id for call in self.calls}
        returned = (part for part in self._parts() if isinstance(part, ToolReturnPart))
        return [part for part in returned if part.tool_call_id in called]

    @property
    def is_reasoning(self) -> bool:
        """Whether nothing but reasoning was produced."""
        reasoning = ReasoningPart | HiddenReasoningPart
        return all(isinstance(part, reasoning) for one in self.answer for part in one.parts)

    def open_calls(self) -> list[ToolCallPart]:
        returned = {one.tool_call_id for one in self.returns}
        return [call for call in self.calls if call.tool_call_id not in returned]

    def _parts(self) -> Iterator[ContentPart]:
        return chain.from_iterable(message.parts for message in self.messages)


def continue_run(
    run: Run,
    transcript: Transcript,
    turn: Turn,
    engine: Engine,
    tools: Collection[str],
    *,
    may_ask: bool = False,
) -> Continuation | None:
    """Return how the run goes on; None if it cannot be continued.

    ``transcript`` has all events of the log, none of them terminal. ``turn`` is that of the first
    attempt. ``tools`` are the tools that a tool loop around the engine runs.
    """
    return _Decision(run, transcript, turn, engine, tools, may_ask=may_ask).decide()


class _Decision:
    def __init__(
        self,
        run: Run,
        transcript: Transcript,
        turn: Turn,
        engine: Engine,
        tools: Collection[str],
        *,
        may_ask: bool,
    ) -> None:
        self._run = run
        self._transcript = transcript
        self._turn = turn
        self._engine = engine
        self._tools = tools
        self._may_ask = may_ask
        self._begun = run.begun_calls
        self._messages = transcript.messages(run)
        self._steps = self._fold()
        self._returns: list[ToolReturnPart] = []
        self._due: list[ToolCallPart] = []
        self._closes_step = False

    def _fold(self) -> list[_Step]:
        """Return the steps so far, each with its messages in order."""
        steps: dict[StepId, _Step] = {}
        for message in self._messages:
            assert message.step_id is not None
            step = steps.setdefault(message.step_id, _Step(message.step_id))
            step.messages.append(message)
        folded = list(steps.values())
        if folded:
            last = folded[-1]
            noted = {one.id for one in self._run.notes.steps}
            begun = self._begun or ()
            last.finished = (
                last.id in noted
                or last.is_summary
                or any(call.tool_call_id in begun for call in last.calls)
                or self._was_answered(last)
            )
        return folded

    def _was_answered(self, step: _Step) -> bool:
        """Whether the calls of the step that others than the engine answer have all returned.

        Nobody answers them before the model's answer has ended or was given up.
        """
        is_others = any(not self._is_own(call.name) for call in step.calls)
        return is_others and not step.open_calls()

    def decide(self) -> Continuation | None:
        returned_due = self._settle_due()
        last = self._steps[-1] if self._steps else None
        upstream_id = self._upstream_id(last)
        if last is not None and last.finished and any(c.needs_approval for c in last.open_calls()):
            return self._continuation(Way.STEP, None)
        if last is not None and self._is_in_own_tool(last):
            return None
        if last is not None and not (upstream_id and not last.finished):
            self._settle_calls(last)
        first_open = self._first_open_step()
        opened = [one for one in self._steps[first_open:] if not one.is_summary]
        before = self._steps[:first_open]
        if not any(one.answer for one in opened):
            if upstream_id and Way.UPSTREAM in self._engine.ways(
                self._with_partial([], upstream_id)
            ):
                return self._goes_on(Way.UPSTREAM, before, returned_due, [], upstream_id)
            return self._goes_on(Way.STEP, before, returned_due)
        if upstream_id and len(opened) == 1:
            partial = self._with_partial(opened, upstream_id)
            if Way.UPSTREAM in self._engine.ways(partial):
                return self._goes_on(Way.UPSTREAM, before, returned_due, opened, upstream_id)
        if len(opened) == 1 and not opened[0].finished and opened[0].is_reasoning:
            self._closes_step = True
            return self._goes_on(Way.STEP, before, returned_due)
        if Way.PREFIX in self._engine.ways(self._with_partial(opened)):
            return self._goes_on(Way.PREFIX, before, returned_due, opened)
        if self._may_ask and len(opened) == 1 and not opened[0].calls:
            return self._goes_on(Way.ASK, before, returned_due, opened)
        return None

    # Calls.

    def _settle_due(self) -> list[ToolReturnPart]:
        """Sort the calls that the turn had to run first, and return their returns so far."""
        due = {call.tool_call_id for call in self._turn.due}
        returned = [
            part
            for message in self._messages
            for part in message.parts
            if isinstance(part, ToolReturnPart) and part.tool_call_id in due
        ]
        done = {part.tool_call_id for part in returned}
        for call in self._turn.due:
            if call.tool_call_id not in done:
                self._sort(call)
        return [*returned, *self._returns]

    def _settle_calls(self, step: _Step) -> None:
        """Sort the calls of the last step that have no return."""
        for call in step.open_calls():
            if step.finished:
                self._sort(call)
            else:
                text = _UNKNOWN if self._begun is None else _INCOMPLETE
                self._returns.append(call.error_return(text))
                self._closes_step = True
        if not step.finished and any(one.output in _INTERRUPTED for one in step.returns):
            self._closes_step = True  # An earlier attempt did it, and ended before it said so.

    def _sort(self, call: ToolCallPart) -> None:
        """Let the call of a complete list run, unless it may have run and must not run twice."""
        may_have_begun = self._begun is None or call.tool_call_id in self._begun
        if may_have_begun and call.tool_call_id not in self._run.notes.repeatable_calls:
            self._returns.append(call.error_return(_UNKNOWN))
        else:
            self._due.append(call)

    def _is_in_own_tool(self, step: _Step) -> bool:
        """Whether the engine may be running a tool of its own, which a new call could repeat."""
        is_unknown = self._begun is None and not step.finished
        return is_unknown and any(self._is_own(call.name) for call in step.open_calls())

    def _is_own(self, name: str) -> bool:
        """Whether the engine runs the tool itself, within its answer: see ``Offer``."""
        if name in self._tools or any(tool.name == name for tool in self._turn.client_tools):
            return False
        own = self._engine.own_tools
        return bool(name.strip()) if own is None else name in own

    # Steps.

    def _first_open_step(self) -> int:
        """Return the index of the first step of the engine's last call."""
        if self._closes_step:
            return len(self._steps)
        first = 0
        for index, step in enumerate(self._steps):
            if step.finished and not all(self._is_own(call.name) for call in step.calls):
                first = index + 1
        return first

    def _upstream_id(self, last: _Step | None) -> str | None:
        """Return the provider's id of the answer of the step that has not finished."""
        notes = self._run.notes
        over = {one.id for one in notes.steps} | {one.id for one in self._steps[:-1]}
        if last is not None and last.finished:
            over.add(last.id)
        return None if notes.upstream_step in over else notes.upstream_id

    def _with_partial(self, opened: Sequence[_Step], upstream_id: str | None = None) -> Turn:
        """Return the turn with the output of the engine's last call as partial output."""
        partial = Partial(
            [message for step in opened for message in step.messages],
            sum(step.finished for step in opened),
            upstream_id,
        )
        return replace(self._turn, partial=partial)

    # The turn.

    def _goes_on(
        self,
        way: Way,
        before: Sequence[_Step],
        returned_due: Sequence[ToolReturnPart],
        opened: Sequence[_Step] = (),
        upstream_id: str | None = None,
    ) -> Continuation:
        messages = list(self._turn.input)
        if returned_due:
            messages.insert(0, self._message(Role.TOOL, returned_due))
        for step in before:
            messages += self._step_messages(step)
        history, sent = self._split(messages)
        asked = sum(bool(step.answer) for step in before)
        turn = replace(
            self._with_partial(opened, upstream_id),
            history=history,
            input=sent,
            due=self._due,
            max_steps=max(self._turn.max_steps - asked, 0),
        )
        if way is Way.STEP:
            turn = replace(turn, partial=None)
        elif way is Way.ASK:
            said = [one for step in opened for one in _for_model(step.answer)]
            asking = self._message(Role.USER, [TextPart(_ASK)])
            turn = replace(turn, partial=None, history=[*history, *sent, *said], input=[asking])
        return self._continuation(way, turn)

    def _step_messages(self, step: _Step) -> list[Message]:
        """Return a finished step as a model gets it."""
        if step.is_summary:
            return [one for one in step.messages if one.role is Role.SUMMARY]
        called = {call.tool_call_id for call in step.calls}
        added = [one for one in self._returns if one.tool_call_id in called]
        returns = [*step.returns, *added]
        answer = _for_model(step.answer)
        return [*answer, self._message(Role.TOOL, returns)] if returns else answer

    def _split(self, messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Return the history and the input of the engine's next call.

        The input is the newest returns of tools, or what was sent. A summary among the messages
        replaces those that it left out.
        """
        roles = [one.role for one in messages]
        first = 0
        if Role.ASSISTANT in roles:
            first = roles.index(Role.TOOL, -1) if roles[-1] is Role.TOOL else len(roles)
            if Role.SUMMARY in roles[-1:] and Role.TOOL in roles:
                first = len(roles) - 1 - roles[::-1].index(Role.TOOL)
        sent = {one.id for one in messages[first:] if one.role is not Role.SUMMARY}
        context = [*self._turn.history, *messages]
        if Role.SUMMARY in roles:
            anchor = self._message(Role.SYSTEM, ())  # ``in_context`` keeps the first one in front.
            context = in_context([anchor, *context])[1:]
        history = [one for one in context if one.id not in sent]
        return history, [one for one in context if one.id in sent]

    def _message(self, role: Role, parts: Sequence[ContentPart]) -> Message:
        """Return a message for the model within this turn; it is not stored."""
        at = self._run.created_at
        return Message(id=new_message_id(), role=role, parts=tuple(parts), created_at=at)

    def _continuation(self, way: Way, turn: Turn | None) -> Continuation:
        return Continuation(way, turn, self._progress(), self._returns, self._closes_step)

    def _progress(self) -> Progress:
        noted = {one.id: one for one in self._run.notes.steps}
        records = [noted.get(one.id, one) for one in self._transcript.steps_seen()]
        is_open = bool(self._steps) and not self._steps[-1].finished
        answers = [step.answer[-1].id if step.answer else None for step in self._steps]
        calls = [*self._turn.due, *(call for step in self._steps for call in step.calls)]
        waiting = {
            c.tool_call_id for step in self._steps for c in step.open_calls() if c.needs_approval
        }
        place = self._transcript.newest_place
        newest = answers[-1] if is_open else None
        progress = Progress(
            steps=records[:-1] if is_open else records,
            step_messages=answers[:-1] if is_open else answers,
            step=records[-1] if is_open else None,
            message_id=newest,
            next_index=self._transcript.part_count(newest) if newest is not None else 0,
            call_ids=[call.tool_call_id for call in calls],
            awaiting_approval=waiting,
        )
        if newest is None or place is None or place.message_id != newest:
            return progress
        fragment = _open_part(self._steps[-1].answer[-1].parts)
        return progress if fragment is None else replace(progress, part=(place, fragment))


def _open_part(parts: Sequence[ContentPart]) -> Fragment | None:
    """Return a fragment of the kind of the last part, if a part of that kind may grow."""
    match parts[-1] if parts else None:
        case TextPart() | ReasoningPart() as last:
            return last
        case ToolCallPart(call_id, needs_approval=waits):
            return ToolCallDelta(call_id, needs_approval=waits)
        case _:
            return None


def _for_model(answer: Sequence[Message]) -> list[Message]:
    """Return a step's output as one message of the form that a tool loop returns to the model."""
    text = "".join(message.text for message in answer)
    calls = [p for message in answer for p in message.parts if isinstance(p, ToolCallPart)]
    parts: list[ContentPart] = [TextPart(text), *calls] if text else [*calls]
    return [structs.replace(answer[0], parts=tuple(parts))] if parts else []
