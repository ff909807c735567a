"""Steps and tool calls, found in the events of a run."""

from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from reattach.domain.errors import ExpiredError
from reattach.domain.events import Output
from reattach.domain.ids import RunId, Seq
from reattach.domain.messages import ToolCallDelta, ToolCallPart, ToolReturnPart
from reattach.log.base import Head, Slice
from reattach.records.base import Target
from reattach.runs.inspection.frames import numbered, read_slices
from reattach.runs.service import RunService
from reattach.single_flight import SingleFlight
from reattach.wire.letta import decode

MAX_CALLS: Final = 1_000
"""The tool calls of a run that are shown."""

MAX_SCANS: Final = 100
"""The runs whose scans are kept, so that the next look reads only newer events."""

_STEP: Final = b'"step_id":"'
_CALLS: Final = (
    b'"message_type":"tool_call_message"',
    b'"message_type":"tool_return_message"',
    b'"message_type":"approval_request_message"',
)
"""Marks of frames with calls and returns. Quotes within texts are escaped."""


@dataclass(slots=True)
class StepSpan:
    """The events of one call of the model."""

    first_seq: Seq
    last_seq: Seq


@dataclass(slots=True)
class CallSpan:
    """A tool call, from the event that completes it to its return."""

    name: str = ""
    began_seq: Seq | None = None
    """The last event of the call; None if an earlier run made it."""
    ended_seq: Seq | None = None
    status: str | None = None
    """``success`` or ``error``; None until it has returned."""
    needs_approval: bool = False


class Scan:
    """The steps and tool calls of a log as far as it was read."""

    def __init__(self, first_seq: Seq) -> None:
        self.first_seq = first_seq
        self.last_seq = first_seq - 1
        self.steps: dict[str, StepSpan] = {}
        self.calls: dict[str, CallSpan] = {}
        self._newest_step: str | None = None

    def add(self, piece: Slice) -> None:
        """Add the next events."""
        if self._newest_step is not None and self._goes_on(piece, self._newest_step):
            self.last_seq = self.steps[self._newest_step].last_seq = piece.last_seq
            return
        for seq, frame in numbered(piece):
            self.last_seq = seq
            begin = frame.find(_STEP)
            if begin < 0:
                continue
            if any(mark in frame for mark in _CALLS):
                self._add_calls(seq, frame)
                if _CALLS[1] in frame:  # The model's work was over before.
                    continue
            begin += len(_STEP)
            end = frame.find(b'"', begin)
            if end >= 0:
                step_id = frame[begin:end].decode(errors="replace")
                self.steps.setdefault(step_id, StepSpan(seq, seq)).last_seq = seq
                self._newest_step = step_id

    @staticmethod
    def _goes_on(piece: Slice, step_id: str) -> bool:
        """Whether the slice has only text of this step, as most have: a fraction of the work."""
        frames = piece.frames
        mark = b'%b%b"' % (_STEP, step_id.encode())
        count = piece.last_seq + 1 - piece.first_seq
        return not any(call in frames for call in _CALLS) and frames.count(mark) == count

    def _add_calls(self, seq: Seq, frame: bytes) -> None:
        try:
            event = decode(frame)
        except Exception:  # noqa: BLE001  damaged bytes can raise anything
            return
        if not isinstance(event, Output):
            return
        for part in event.parts:
            if not isinstance(part, ToolCallDelta | ToolCallPart | ToolReturnPart):
                continue
            if part.tool_call_id not in self.calls and len(self.calls) >= MAX_CALLS:
                continue
            call = self.calls.setdefault(part.tool_call_id, CallSpan())
            if isinstance(part, ToolReturnPart):
                call.name, call.ended_seq, call.status = part.name, seq, part.status
                continue
            call.began_seq = seq
            call.needs_approval = part.needs_approval
            is_whole = isinstance(part, ToolCallPart)
            call.name = (part.name or "") if is_whole else call.name + (part.name or "")


class Scans:
    """Scans of logs. The newest ones are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[RunId, Scan] = OrderedDict()
        self._flights: SingleFlight[RunId, Scan] = SingleFlight("scan of a log")

    async def of(self, runs: RunService, target: Target, head: Head) -> Scan:
        """Return the steps and calls of the log, up to an event that cannot be read.

        Raises:
            StoreUnavailableError: The log could not be read.
        """
        return await self._flights.do(target.run_id, partial(self._scan, runs, target, head))

    async def _scan(self, runs: RunService, target: Target, head: Head) -> Scan:
        scan = self._kept.get(target.run_id)
        if scan is None or scan.first_seq != head.first_seq:
            scan = Scan(head.first_seq)
        slices = read_slices(runs, target, scan.last_seq + 1, head.last_seq)
        try:
            async with aclosing(slices):
                async for piece in slices:
                    scan.add(piece)
        except ExpiredError:
            pass  # Shown as far as it can be read.
        self._kept[target.run_id] = scan
        self._kept.move_to_end(target.run_id)
        if len(self._kept) > MAX_SCANS:
            self._kept.popitem(last=False)
        return scan
