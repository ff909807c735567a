"""Unique ids and complete names for the tool calls of a model's answers.

Providers reuse an id within one answer or in a later one, or give none; some split a name or repeat
it with every piece. Everything after the engine finds a call by its id, so deltas are normalized
here, once, before they are logged. Pure.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from reattach.domain.messages import ToolCallDelta, ToolCallPart, ToolReturnPart
from reattach.engine.base import Delta, StepFinished, ToolStarting

_NAMELESS = "call"
"""The stem of the id of a call without one."""


class CallIds:
    """Allocates ids of tool calls, each once."""

    def __init__(self, is_taken: Callable[[str], bool] = lambda _: False) -> None:
        """``is_taken`` says whether an earlier call has an id."""
        self._is_taken = is_taken
        self._allocated: set[str] = set()

    def unused(self, wanted: str) -> str:
        """Return ``wanted``, or a deterministic variant of it if that is taken."""
        unused = wanted or f"{_NAMELESS}-1"
        number = 2
        while unused in self._allocated or self._is_taken(unused):
            unused = f"{wanted or _NAMELESS}-{number}"
            number += 1
        self._allocated.add(unused)
        return unused


@dataclass(slots=True)
class Call:
    """One call as far as the model has produced it."""

    id: str
    step: int
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    needs_approval: bool = False
    is_held: bool = True
    """Whether none of it was passed on yet, so that its name may still grow."""
    has_returned: bool = False

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def add_name(self, piece: str) -> None:
        """Append a piece of the name. A repetition of the whole name is ignored."""
        if piece != self.name:
            self.name += piece

    def is_followed_by(self, delta: ToolCallDelta, step: int) -> bool:
        """Whether ``delta``, which has the same id, begins another call."""
        if delta.name is None:
            return False
        if self.has_returned or self.step != step:
            return True
        return bool(self.pieces) and (delta.name != self.name or is_json(self.arguments))


class CallStream:
    """The calls of one answer.

    Pass its deltas to ``take`` in order, and use what it yields instead.

    A call's name is passed on with its first arguments, or before the next delta that is not a
    call.
    """

    def __init__(self, ids: CallIds) -> None:
        self.calls: dict[str, Call] = {}
        """By allocated id, in the order in which they began."""
        self._ids = ids
        self._called: dict[str, list[Call]] = {}
        """By the engine's id."""
        self._held: list[Call] = []
        self._step = 0

    def add_earlier(self, call: ToolCallPart, *, has_returned: bool) -> None:
        """Add a call of the answer before an interruption; deltas may continue it."""
        known = Call(
            self._ids.unused(call.tool_call_id),
            self._step,
            call.name,
            [call.arguments],
            call.needs_approval,
            is_held=False,
            has_returned=has_returned,
        )
        self.calls[known.id] = known
        self._called[call.tool_call_id] = [known]

    def take(self, delta: Delta) -> Iterator[Delta]:
        """Yield what was held back, then ``delta`` with the call's allocated id."""
        if isinstance(delta, ToolCallDelta):
            yield from self._call(delta)
            return
        if self._held:
            yield from self.flush()
        match delta:
            case ToolReturnPart(tool_call_id=call_id) if call := self._unreturned(call_id):
                call.has_returned = True
                yield replace(delta, tool_call_id=call.id)
            case ToolStarting(call_id, may_repeat, name) if call := self._unreturned(call_id):
                yield ToolStarting(call.id, may_repeat, name)
            case StepFinished():
                self._step += 1
                yield delta
            case _:
                yield delta

    def flush(self) -> Iterator[ToolCallDelta]:
        """Yield the names of calls that have no arguments yet."""
        held, self._held = self._held, []
        for call in held:
            call.is_held = False
            yield ToolCallDelta(call.id, call.name, None, call.needs_approval)

    def _call(self, delta: ToolCallDelta) -> Iterator[ToolCallDelta]:
        known = self._called.setdefault(delta.tool_call_id, [])
        if not known or known[-1].is_followed_by(delta, self._step):
            known.append(Call(self._ids.unused(delta.tool_call_id), self._step))
            self.calls[known[-1].id] = known[-1]
            self._held.append(known[-1])
        call = known[-1]
        call.needs_approval = delta.needs_approval
        if delta.name and call.is_held:
            call.add_name(delta.name)
        if not delta.arguments:
            return
        call.pieces.append(delta.arguments)
        if call.is_held:
            yield from self._begin(call, delta)
        else:
            yield replace(delta, tool_call_id=call.id, name=None)

    def _begin(self, call: Call, delta: ToolCallDelta) -> Iterator[ToolCallDelta]:
        """Yield earlier held calls, then this call's name with its first arguments."""
        place = self._held.index(call)
        later, self._held = self._held[place + 1 :], self._held[:place]
        yield from self.flush()
        self._held, call.is_held = later, False
        if call.name == delta.name:  # Keep name and arguments in one delta.
            yield replace(delta, tool_call_id=call.id)
            return
        yield ToolCallDelta(call.id, call.name, None, call.needs_approval)
        yield replace(delta, tool_call_id=call.id, name=None)

    def _unreturned(self, call_id: str) -> Call | None:
        """Return the first call under the engine's id that has not returned."""
        calls = self._called.get(call_id, [])
        return next((call for call in calls if not call.has_returned), None)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
