"""The entry for deltas: makes the numbers, texts and ids of every engine storable.

Everything that is logged can be read back. An engine passes on values of its provider or tools, so
a count may be a fraction and a text may end within a character. Values with a meaning are kept;
others become U+FFFD, an unknown count or a generated id. A delta of a wrong type is a fault of the
engine and raises TypeError before any of it is used.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Final, cast

from msgspec.structs import replace

from reattach.domain.events import StopReason, Usage
from reattach.domain.ids import MessageId, new_uuid
from reattach.domain.limits import MAX_INTEGER, MAX_TOOL_CALL_ID_CHARS
from reattach.domain.messages import (
    CompactionStats,
    HiddenReasoningPart,
    ReasoningPart,
    SummaryPart,
    TextPart,
    ToolCallDelta,
    ToolReturnPart,
)
from reattach.domain.text import REPLACEMENT, ends_in_half, is_storable, storable_text
from reattach.engine.base import (
    AnswerKept,
    Compacted,
    Compacting,
    Delta,
    Finished,
    StepFinished,
    ToolStarting,
)

_REQUIRED_COUNTS: Final = ("completion_tokens", "prompt_tokens", "total_tokens", "step_count")
_COUNTS: Final = tuple(member.name for member in fields(Usage))


def whole_count(value: object) -> int | None:
    """Return the value as a non-negative integer, rounded; None if it is not a count."""
    if type(value) is int:  # Nearly all are this or None.
        return value if 0 <= value <= MAX_INTEGER else None
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        count = operator.index(cast("int", value))
    except TypeError:
        try:
            count = round(float(cast("float", value)))
        except (TypeError, ValueError, OverflowError):  # NaN and infinity raise the last two.
            return None
    return count if 0 <= count <= MAX_INTEGER else None


def storable_usage(usage: object) -> Usage:
    """Return usage whose counts are all integers; an unknown required count is 0."""
    if not isinstance(usage, Usage):
        return Usage()
    counts: dict[str, int | None] = {}
    for name in _COUNTS:
        count = whole_count(getattr(usage, name))
        counts[name] = 0 if count is None and name in _REQUIRED_COUNTS else count
    return Usage(**counts)  # type: ignore[arg-type]  # the required ones are not None


def storable_return(returned: ToolReturnPart) -> ToolReturnPart:
    """Return a tool's return whose texts can be stored and sent to models and clients.

    Raises ValueError if it has images, because events cannot carry them.
    """
    if returned.images:
        raise ValueError("a return that an engine yields has no images; describe them in its text")
    return ToolReturnPart(
        returned.tool_call_id,
        _text(returned.name),
        "success" if returned.status == "success" else "error",
        _text(returned.output),
        _lines(returned.stdout),
        _lines(returned.stderr),
    )


class Intake:
    """Makes the deltas of one run storable, in the order in which the engine yields them.

    Call ``take`` for each and ``release`` at the end. A trailing half of a surrogate pair is held
    back, because the next delta may begin with the other half. Deltas from another intake pass
    unchanged.
    """

    def __init__(self, call_ids: Iterable[str] = ()) -> None:
        """``call_ids`` are those of the run's earlier calls, which keep them."""
        self._part: object = None
        """The kind of the current part; halves are joined within one part only."""
        self._halves: dict[tuple[_ModelDelta, str], str] = {}
        """The halves held back, by an empty delta of their kind and the member they belong to."""
        self._ids = {call_id: call_id for call_id in call_ids}
        """The stored id for every tool call id of the engine."""
        self._taken = set(self._ids)
        self._step_is_over = False

    def is_plain(self, text: object) -> bool:
        """Whether a delta with only this text is storable as it is, as most are."""
        if type(text) is not str or self._halves:
            return False
        # The common case of ``is_storable``, without the call.
        return (text.isascii() and "\0" not in text) or is_storable(text)

    def take(self, delta: Delta) -> Sequence[Delta]:
        """Return the storable deltas for ``delta``.

        Raises:
            TypeError: It is not a delta. None of it is used.
            ValueError: A member has no valid value. None of it is used.
        """
        match delta:
            case TextPart(text):
                members: dict[str, Any] = {"text": _string(text)}
                empty: _ModelDelta = TextPart("")
            case ReasoningPart(text, signature):
                members = {"text": _string(text), "signature": _optional(signature)}
                empty = ReasoningPart("")
            case ToolCallDelta(name=name, arguments=arguments, needs_approval=waits):
                members = {"name": _optional(name), "arguments": _optional(arguments)}
                empty = ToolCallDelta(
                    self._id_of_call(delta.tool_call_id), needs_approval=bool(waits)
                )
            case _:
                whole = self._storable(delta)
                return [*self.release(), whole]
        part = (type(empty), getattr(empty, "needs_approval", None))
        released = [] if part == self._part else self.release()
        self._part = part
        members = {member: self._join(empty, member, text) for member, text in members.items()}
        storable: _ModelDelta = replace(empty, **members)
        if isinstance(storable, ToolCallDelta) or storable != empty or delta == empty:
            return [*released, storable]
        return released  # Everything is held back.

    def release(self) -> Sequence[Delta]:
        """Return deltas for the held halves, whose other halves will not come."""
        self._part = None
        halves, self._halves = self._halves, {}
        members: list[tuple[_ModelDelta, dict[str, Any]]]
        members = [(empty, {member: REPLACEMENT}) for empty, member in halves]
        return [replace(empty, **member) for empty, member in members]

    def call_id(self, given: str) -> str:
        """Return the stored id of the tool call that the engine calls ``given``."""
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

    def _id_of_call(self, given: str) -> str:
        if given == "" and self._step_is_over:
            self._ids.pop(given, None)  # In a later step it is another call.
        self._step_is_over = False
        return self.call_id(given)

    def _join(self, empty: "_ModelDelta", member: str, text: str | None) -> str | None:
        if text is None:
            return None
        text = self._halves.pop((empty, member), "") + text
        if is_storable(text):
            return text
        if ends_in_half(text):
            self._halves[empty, member] = text[-1]
            text = text[:-1]
        return storable_text(text)

    def _storable(self, delta: object) -> Delta:
        match delta:
            case StepFinished(usage, broke_off):
                self._step_is_over = True
                return StepFinished(storable_usage(usage), broke_off is True)
            case Finished(reason):
                return Finished(StopReason(reason))
            case HiddenReasoningPart(state, text):
                shown = None if text is None else _text(text)
                return HiddenReasoningPart("redacted" if state == "redacted" else "omitted", shown)
            case ToolStarting(call_id, may_repeat, name):
                return ToolStarting(self.call_id(call_id), may_repeat is True, _text(name))
            case AnswerKept(upstream_id):
                return AnswerKept(_text(upstream_id))
            case ToolReturnPart():
                return replace(
                    storable_return(delta), tool_call_id=self.call_id(delta.tool_call_id)
                )
            case Compacting(trigger, tokens, window):
                return Compacting(
                    _text(trigger), whole_count(tokens) or 0, whole_count(window) or 0
                )
            case Compacted(summary, usage, model, kept_from_step):
                return Compacted(
                    _storable_summary(summary),
                    storable_usage(usage),
                    None if model is None else _text(model),
                    whole_count(kept_from_step),
                )
            case _:
                raise TypeError(f"an engine yields deltas, not {type(delta).__name__}")


_ModelDelta = TextPart | ReasoningPart | ToolCallDelta


def _storable_summary(summary: SummaryPart) -> SummaryPart:
    kept_from, stats = summary.kept_from, summary.stats
    return SummaryPart(
        _text(summary.text),
        None if kept_from is None else MessageId(_text(kept_from)),
        None
        if stats is None
        else CompactionStats(
            _text(stats.trigger),
            whole_count(stats.context_window) or 0,
            whole_count(stats.messages_count_before) or 0,
            whole_count(stats.messages_count_after) or 0,
            whole_count(stats.context_tokens_before),
            whole_count(stats.context_tokens_after),
        ),
    )


def _string(value: object) -> str:
    """Return the value as a plain ``str``, because encoders refuse subclasses."""
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
