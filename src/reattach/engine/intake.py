"""The way in for deltas: every engine's numbers, texts and ids are made storable here.

Nothing is written that cannot be read back. An engine hands on whatever its provider or its tools
gave it, so a count may be a fraction and a text may end within a character. What has a meaning is
kept; the rest becomes U+FFFD, an unknown count or a generated id. A delta of the wrong type is a
fault of the engine, and raises TypeError before anything of it is taken.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, Final, cast

from reattach.domain.events import StopReason, Usage
from reattach.domain.ids import MessageId, new_uuid
from reattach.domain.limits import MAX_INTEGER, MAX_TOOL_CALL_ID_CHARS
from reattach.domain.messages import CompactionStats
from reattach.domain.text import REPLACEMENT, ends_in_half, is_storable, storable_text
from reattach.engine.base import (
    Compacted,
    Compacting,
    Delta,
    Finished,
    ReasoningDelta,
    ReasoningHidden,
    StepFinished,
    TextDelta,
    ToolCallDelta,
    ToolReturn,
    ToolStarting,
)

_REQUIRED_COUNTS: Final = ("completion_tokens", "prompt_tokens", "total_tokens", "step_count")
_COUNTS: Final = tuple(member.name for member in fields(Usage))


def whole_count(value: object) -> int | None:
    """The value as a whole non-negative count, rounded; None if it is no count."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        count = operator.index(cast("int", value))
    except TypeError:
        try:
            count = round(float(cast("float", value)))
        except (TypeError, ValueError, OverflowError):  # NaN and infinity are the last two.
            return None
    return count if 0 <= count <= MAX_INTEGER else None


def storable_usage(usage: object) -> Usage:
    """Usage whose members are all whole counts; one that is unknown is 0 where it has to be."""
    if not isinstance(usage, Usage):
        return Usage()
    counts: dict[str, int | None] = {}
    for name in _COUNTS:
        count = whole_count(getattr(usage, name))
        counts[name] = 0 if count is None and name in _REQUIRED_COUNTS else count
    return Usage(**counts)  # type: ignore[arg-type]  # the required ones are not None


def storable_return(returned: ToolReturn) -> ToolReturn:
    """A tool's return whose texts can be stored, told to a model and sent to clients."""
    return ToolReturn(
        returned.tool_call_id,
        _text(returned.name),
        "success" if returned.status == "success" else "error",
        _text(returned.output),
        _lines(returned.stdout),
        _lines(returned.stderr),
    )


class Intake:
    """The deltas of one run, in the order in which its engine yields them.

    ``take`` each, and ``release`` at the end. A text that ends with half a surrogate pair is held
    back by that half, since the next delta may begin with the other one. Taking deltas that
    another intake gave changes nothing.
    """

    def __init__(self) -> None:
        self._part: object = None
        """The kind of part under way; halves are joined within one part only."""
        self._halves: dict[tuple[_Spoken, str], str] = {}
        """Halves held back, by an empty delta like their own and the member they belong to."""
        self._ids: dict[str, str] = {}
        """Every tool call id that the engine used, and the id that stands for it."""
        self._taken: set[str] = set()
        self._step_is_over = False

    def is_plain(self, text: object) -> bool:
        """Whether a delta of this text alone can be stored as it is: all that most deltas cost."""
        return not self._halves and type(text) is str and is_storable(text)

    def take(self, delta: Delta) -> Sequence[Delta]:
        """The deltas to store for ``delta``.

        Raises TypeError or ValueError, taking nothing, for one that no engine may yield.
        """
        match delta:
            case TextDelta(text):
                members: dict[str, Any] = {"text": _string(text)}
                empty: _Spoken = TextDelta("")
            case ReasoningDelta(text, signature):
                members = {"text": _string(text), "signature": _optional(signature)}
                empty = ReasoningDelta("")
            case ToolCallDelta(name=name, arguments=arguments, needs_approval=waits):
                members = {"name": _optional(name), "arguments": _optional(arguments)}
                empty = ToolCallDelta(self._called(delta.tool_call_id), needs_approval=bool(waits))
            case _:
                whole = self._whole(delta)
                return [*self.release(), whole]
        part = (type(empty), getattr(empty, "needs_approval", None))
        released = [] if part == self._part else self.release()
        self._part = part
        members = {member: self._joined(empty, member, text) for member, text in members.items()}
        spoken: _Spoken = replace(empty, **members)
        if isinstance(spoken, ToolCallDelta) or spoken != empty or delta == empty:
            return [*released, spoken]
        return released  # All of it is held back.

    def release(self) -> Sequence[Delta]:
        """The deltas for the halves that are held: their other halves will not come."""
        self._part = None
        halves, self._halves = self._halves, {}
        members: list[tuple[_Spoken, dict[str, Any]]]
        members = [(empty, {member: REPLACEMENT}) for empty, member in halves]
        return [replace(empty, **member) for empty, member in members]

    def call_id(self, given: str) -> str:
        """The id that stands for the tool call that the engine calls ``given``."""
        known = self._ids.get(given)
        if known is not None:
            return known
        fit = storable_text(_string(given))
        if len(fit) > MAX_TOOL_CALL_ID_CHARS:
            fit = f"call-{hashlib.sha256(fit.encode()).hexdigest()}"
        if not fit or fit in self._taken:
            fit = f"call-{new_uuid()}"
        self._ids[given] = fit
        self._taken.add(fit)
        return fit

    def _called(self, given: str) -> str:
        if given == "" and self._step_is_over:
            self._ids.pop(given, None)  # A call of a later step is another one.
        self._step_is_over = False
        return self.call_id(given)

    def _joined(self, empty: "_Spoken", member: str, text: str | None) -> str | None:
        if text is None:
            return None
        text = self._halves.pop((empty, member), "") + text
        if is_storable(text):
            return text
        if ends_in_half(text):
            self._halves[empty, member] = text[-1]
            text = text[:-1]
        return storable_text(text)

    def _whole(self, delta: object) -> Delta:
        match delta:
            case StepFinished(usage):
                self._step_is_over = True
                return StepFinished(storable_usage(usage))
            case Finished(reason):
                return Finished(StopReason(reason))
            case ReasoningHidden(state, text):
                shown = None if text is None else _text(text)
                return ReasoningHidden("redacted" if state == "redacted" else "omitted", shown)
            case ToolStarting(call_id):
                return ToolStarting(self.call_id(call_id))
            case ToolReturn():
                return replace(
                    storable_return(delta), tool_call_id=self.call_id(delta.tool_call_id)
                )
            case Compacting(trigger, tokens, window):
                return Compacting(
                    _text(trigger), whole_count(tokens) or 0, whole_count(window) or 0
                )
            case Compacted():
                return _storable_compacted(delta)
            case _:
                raise TypeError(f"an engine yields deltas, not {type(delta).__name__}")


_Spoken = TextDelta | ReasoningDelta | ToolCallDelta


def _storable_compacted(delta: Compacted) -> Compacted:
    kept_from = delta.kept_from
    stats = delta.stats
    return Compacted(
        _text(delta.summary),
        kept_from if isinstance(kept_from, int) else MessageId(_text(kept_from)),
        CompactionStats(
            _text(stats.trigger),
            whole_count(stats.context_window) or 0,
            whole_count(stats.messages_count_before) or 0,
            whole_count(stats.messages_count_after) or 0,
            whole_count(stats.context_tokens_before),
            whole_count(stats.context_tokens_after),
        ),
        storable_usage(delta.usage),
        None if delta.model is None else _text(delta.model),
    )


def _string(value: object) -> str:
    """The value as a plain ``str``, since encoders refuse subclasses."""
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"a text of a delta is a str, not {type(value).__name__}")


def _optional(value: object) -> str | None:
    return None if value is None else _string(value)


def _text(value: object) -> str:
    return storable_text(_string(value))


def _lines(values: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(map(_text, values))
