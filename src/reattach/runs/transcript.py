"""A run's events folded into the messages that its conversation keeps.

The owner at the end of a run and a recovery from the log use the same fold, so the joined stream,
the stored messages and a replay always have the same text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from msgspec import structs

from reattach.domain.approvals import has_answer, pending_approval
from reattach.domain.events import (
    CompactionBegan,
    Event,
    Failed,
    Output,
    Ping,
    Place,
    RunStatus,
    Stopped,
    StopReason,
    Usage,
)
from reattach.domain.ids import MessageId, StepId, new_message_id
from reattach.domain.messages import (
    Fragment,
    HiddenReasoningPart,
    Message,
    Role,
    SummaryPart,
    ToolCallPart,
    ToolReturnPart,
    awaits_approval,
    join_fragments,
)
from reattach.records.base import Run, RunError, Settlement, Step, StepRecord

_NOT_RUN = "The run ended before this call was reached; the tool did not run."
_UNKNOWN = "The run ended before this tool returned; whether it did its work is not known."

_ROLES = {ToolReturnPart: Role.TOOL, SummaryPart: Role.SUMMARY}
"""The roles of messages that begin with these parts; all others are the assistant's."""


class Transcript:
    """The events of one run. ``add`` each in order, then call ``settlement``."""

    def __init__(self) -> None:
        self._fragments: dict[MessageId, dict[int, list[Fragment]]] = {}
        self._places: dict[MessageId, Place] = {}
        self._place: Place | None = None
        self._newest: list[Fragment] = []
        """The fragments at ``_place``, the place of the newest event."""
        self.stopped: Stopped | None = None
        self.failed: Failed | None = None
        self.usage = Usage()
        self.due: tuple[ToolCallPart, ...] = ()
        """Calls of the previous run that this one had to run first."""
        self.begun: tuple[str, ...] | None = None
        """The calls whose tools may have started; None: any."""

    def add(self, event: Event) -> None:
        match event:
            case Output(place, parts):
                self.add_piece(place, parts[0])
                self._newest += parts[1:]
            case Stopped():
                self.stopped = event
            case Failed():
                self.failed = event
            case Usage():
                self.usage = event
            case Ping() | CompactionBegan():
                pass

    def add_piece(self, place: Place, piece: Fragment) -> None:
        """Add output that consists of one piece."""
        if place is not self._place:  # Most pieces continue the newest part.
            self._newest = self._fragments_at(place, piece)
            self._place = place
        self._newest.append(piece)

    def _fragments_at(self, place: Place, first: Fragment) -> list[Fragment]:
        """Return the list of the fragments at the place where ``first`` is added."""
        self._places.setdefault(place.message_id, place)
        parts = self._fragments.setdefault(place.message_id, {})
        index = _approval_index(parts) if awaits_approval(first) else place.index
        return parts.setdefault(index, [])

    def steps_seen(self) -> list[StepRecord]:
        """Return the steps that have output in the log. Their usage is unknown."""
        steps: dict[StepId, StepRecord] = {}
        for place in self._places.values():
            steps.setdefault(place.step_id, StepRecord(place.step_id, place.at, Usage()))
        return list(steps.values())

    @property
    def newest_place(self) -> Place | None:
        """The place of the newest event with output."""
        return self._place

    def part_count(self, message_id: MessageId) -> int:
        """Return the number of parts of a message, which is the index of its next part."""
        return max(self._fragments[message_id], default=-1) + 1

    def compact(self) -> None:
        """Join the fragments that came so far, to hold less memory. Nothing else changes."""
        for parts in self._fragments.values():
            for fragments in parts.values():
                if len(fragments) > 1:
                    fragments[:] = join_fragments(fragments)

    def messages(
        self, run: Run, *, filler: HiddenReasoningPart | None = None
    ) -> tuple[Message, ...]:
        """Return the messages that the events make up, in order.

        ``filler`` stands for each part that the events leave out before another part of its
        message, so that the parts after it keep their places.
        """
        return tuple(
            self._message(run, message_id, _in_order(parts, filler))
            for message_id, parts in self._fragments.items()
        )

    def _message(
        self, run: Run, message_id: MessageId, fragments: Sequence[Sequence[Fragment]]
    ) -> Message:
        first = fragments[0][0]
        return Message(
            id=message_id,
            role=_ROLES.get(type(first), Role.ASSISTANT),
            parts=tuple(part for one in fragments for part in join_fragments(one)),
            created_at=self._places[message_id].at,
            name=first.name if isinstance(first, ToolReturnPart) else None,
            run_id=run.id,
            step_id=self._places[message_id].step_id,
        )

    def settlement(self, run: Run, steps: list[StepRecord], completed_at: datetime) -> Settlement:
        """Return how the run ended. The terminal group must have been added.

        A run that failed before the model produced anything leaves the conversation unchanged.
        """
        assert self.stopped is not None, f"{run.id} has no terminal group"
        reason = self.stopped.reason
        output = self._without_stray_returns(run, self.messages(run))
        output += self._missing_returns(run, output, completed_at)
        has_output = any(message.role is not Role.SUMMARY for message in output)
        is_kept = has_output or reason.run_status is RunStatus.COMPLETED
        first_step = steps[0].id if steps else None
        sent = tuple(_stored_input(message, run, first_step) for message in run.input)
        return Settlement(
            stop_reason=reason,
            completed_at=completed_at,
            usage=self.usage,
            messages=sent + output if is_kept else (),
            steps=tuple(self._step(run, record, last=record is steps[-1]) for record in steps),
            error=self._error(run),
            duration_ns=int((completed_at - run.created_at).total_seconds() * 1e9),
        )

    def _without_stray_returns(self, run: Run, output: tuple[Message, ...]) -> tuple[Message, ...]:
        """Drop returns without their call, because no provider accepts them.

        A log that leaves out calls may have such returns. If the run answers calls that could not
        be read, the returns of those are unknown, so all are kept.
        """
        if not self.due and has_answer(run.input):
            return output
        called = {call.tool_call_id for call in self.due}
        kept = []
        for message in output:
            called |= {p.tool_call_id for p in message.parts if isinstance(p, ToolCallPart)}
            if message.role is not Role.TOOL or any(
                isinstance(p, ToolReturnPart) and p.tool_call_id in called for p in message.parts
            ):
                kept.append(message)
        return tuple(kept)

    def _missing_returns(
        self, run: Run, output: Sequence[Message], at: datetime
    ) -> tuple[Message, ...]:
        """Return error returns for calls that will never return: no model accepts an open call.

        If the client was asked for an approval, all calls of that message wait for its answer.
        """
        assert self.stopped is not None
        asked = self.stopped.reason is StopReason.REQUIRES_APPROVAL
        if asked and pending_approval(output) is not None:
            return ()
        parts = [(message, part) for message in output for part in message.parts]
        returned = {p.tool_call_id for _, p in parts if isinstance(p, ToolReturnPart)}
        own = tuple(
            Message(
                id=new_message_id(),
                role=Role.TOOL,
                parts=(self._missing_return(part),),
                created_at=at,
                name=part.name,
                run_id=message.run_id,
                step_id=message.step_id,
            )
            for message, part in parts
            if isinstance(part, ToolCallPart) and part.tool_call_id not in returned
        )
        return (*self._missing_due_returns(run, returned, at), *own)

    def _missing_due_returns(
        self, run: Run, returned: set[str], at: datetime
    ) -> tuple[Message, ...]:
        """Return error returns for due calls without one, once any of them may have started."""
        left = [call for call in self.due if call.tool_call_id not in returned]
        if not left or not any(self._may_have_begun(call) for call in self.due):
            return ()
        parts = tuple(
            call.error_return(_UNKNOWN if self._may_have_begun(call) else _NOT_RUN) for call in left
        )
        return (
            Message(id=new_message_id(), role=Role.TOOL, parts=parts, created_at=at, run_id=run.id),
        )

    def _missing_return(self, call: ToolCallPart) -> ToolReturnPart:
        # A call that needs an approval has waited for it and cannot have started.
        may_have_run = not call.needs_approval and self._may_have_begun(call)
        return call.error_return(_UNKNOWN if may_have_run else _NOT_RUN)

    def _may_have_begun(self, call: ToolCallPart) -> bool:
        return self.begun is None or call.tool_call_id in self.begun

    def _step(self, run: Run, record: StepRecord, *, last: bool) -> Step:
        assert self.stopped is not None
        status = self.stopped.reason.run_status if last else RunStatus.COMPLETED
        names = {RunStatus.FAILED: "failed", RunStatus.CANCELLED: "cancelled"}
        return Step(
            id=record.id,
            run_id=run.id,
            agent_id=run.thread.agent_id,
            created_at=record.started_at,
            model=record.model or run.model,
            usage=replace(record.usage, step_count=1),
            stop_reason=self.stopped.reason if last else None,
            status=names.get(status, "success"),  # type: ignore[arg-type]  # one of the three
            error_type=self.failed.error_type if last and self.failed else None,
        )

    def _error(self, run: Run) -> RunError | None:
        failed = self.failed
        if failed is None:
            return None
        return RunError(run.id, failed.error_type, failed.message, failed.detail)


def _in_order(
    parts: Mapping[int, Sequence[Fragment]], filler: HiddenReasoningPart | None
) -> list[Sequence[Fragment]]:
    """Return the fragments of each part, with ``filler`` for each missing one unless it is None."""
    if filler is None:
        return [parts[index] for index in sorted(parts)]
    return [parts.get(index, (filler,)) for index in range(max(parts) + 1)]


def _approval_index(parts: Mapping[int, Sequence[Fragment]]) -> int:
    """The index of an approval request after these parts, which frames do not carry."""
    last = max(parts, default=-1)
    return last if last >= 0 and awaits_approval(parts[last][0]) else last + 1


def _stored_input(message: Message, run: Run, step_id: StepId | None) -> Message:
    """Return a message of the run's input in the form that the conversation keeps."""
    kept_step = step_id if message.role is Role.USER else message.step_id
    return structs.replace(message, run_id=run.id, step_id=kept_step)
