"""The rest of a kept answer: everything of it that was not shown before the interruption.

The provider sends the answer again from its start. The text, the reasoning and each call are
compared with the parts that were shown, and dropped by their lengths, each on its own: the provider
may interleave them. Pure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from reattach.domain.errors import EngineError
from reattach.domain.ids import MessageId, StepId
from reattach.domain.messages import (
    ContentPart,
    HiddenReasoningPart,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallDelta,
    ToolCallPart,
)
from reattach.engine.base import AnswerKept, Delta, Finished, Partial
from reattach.engine.intake import Intake


@dataclass(slots=True)
class _Shown:
    """A text that was shown, as far as it has not come again."""

    text: str
    place: int = 0

    @property
    def is_over(self) -> bool:
        return self.place == len(self.text)

    def drop_from(self, text: str) -> str | None:
        """Return the end of ``text`` that was not shown; None if ``text`` differs."""
        if self.is_over:  # Most deltas.
            return text
        length = min(len(text), len(self.text) - self.place)
        if not self.text.startswith(text[:length], self.place):
            return None
        self.place += length
        return text[length:]


@dataclass(slots=True)
class _Call:
    """A call of the answer, by the id that it has in the log."""

    id: str
    name: str | None = None
    """None: the name was not shown."""
    arguments: _Shown = field(default_factory=lambda: _Shown(""))


class Remainder:
    """Drops the deltas that repeat the unfinished step of ``partial``.

    Pass all deltas of the repeated answer to ``take`` in order, and use what it yields instead. A
    call goes on under the id under which it was shown: calls are matched by their order.
    """

    def __init__(self, partial: Partial, differs: Callable[[], EngineError]) -> None:
        """``differs`` makes the error for an answer that does not begin with what was shown."""
        parts = _unfinished_parts(partial)
        self._differs = differs
        self._intake = Intake()  # The shown texts are storable, so the repeated ones must be too.
        self._text = _Shown("".join(one.text for one in parts if isinstance(one, TextPart)))
        self._reasoning = _Shown(
            "".join(one.text for one in parts if isinstance(one, ReasoningPart))
        )
        self._hidden = sum(isinstance(one, HiddenReasoningPart) for one in parts)
        self._shown_calls = _shown_calls(parts)
        self._calls: dict[str, _Call] = {}
        """By the id in the repeated answer."""
        self.is_empty = not parts
        """Whether nothing of the answer was shown."""

    @property
    def shown_call_ids(self) -> list[str]:
        return [call.id for call in self._shown_calls]

    def take(self, delta: Delta) -> Iterator[Delta]:
        """Yield the part of ``delta`` that was not shown.

        Raises EngineError if the answer differs from what was shown.
        """
        for storable in self._intake.take(delta):
            yield from self._take(storable)

    def _take(self, delta: Delta) -> Iterator[Delta]:
        match delta:
            case AnswerKept():
                return
            case TextPart(text):
                if rest := self._rest(self._text, text):
                    yield TextPart(rest)
            case ReasoningPart(text):
                if rest := self._rest(self._reasoning, text):
                    yield replace(delta, text=rest)
            case HiddenReasoningPart() if self._hidden:
                self._hidden -= 1
            case ToolCallDelta():
                yield from self._take_call(delta)
            case Finished():
                self._check_all_came()
                yield delta
            case _:
                yield delta

    def _rest(self, shown: _Shown, text: str) -> str:
        rest = shown.drop_from(text)
        if rest is None:
            raise self._differs()
        return rest

    def _take_call(self, delta: ToolCallDelta) -> Iterator[ToolCallDelta]:
        call = self._calls.get(delta.tool_call_id)
        if call is None:
            number = len(self._calls)
            is_shown = number < len(self._shown_calls)
            call = self._shown_calls[number] if is_shown else _Call(delta.tool_call_id)
            self._calls[delta.tool_call_id] = call
        name, arguments = delta.name, self._rest(call.arguments, delta.arguments or "")
        if call.name is not None and name is not None:
            if name != call.name:
                raise self._differs()
            name = None
        if name or arguments:
            yield ToolCallDelta(call.id, name, arguments or None, delta.needs_approval)

    def _check_all_came(self) -> None:
        """Raise EngineError if more was shown than the whole answer has."""
        texts = [self._text, self._reasoning, *(call.arguments for call in self._shown_calls)]
        if not all(text.is_over for text in texts) or len(self._calls) < len(self._shown_calls):
            raise self._differs()


def _shown_calls(parts: Sequence[ContentPart]) -> list[_Call]:
    """Return the calls in the order in which they began. One may be spread over several parts."""
    calls: dict[str, _Call] = {}
    for part in parts:
        if isinstance(part, ToolCallPart):
            call = calls.setdefault(part.tool_call_id, _Call(part.tool_call_id))
            call.name = call.name or part.name or None
            call.arguments.text += part.arguments
    return list(calls.values())


def _unfinished_parts(partial: Partial) -> list[ContentPart]:
    """Return the parts of the model's step that had not finished; empty if it had none."""
    steps: dict[StepId | MessageId, list[ContentPart]] = {}
    for message in partial.messages:
        if message.role is Role.ASSISTANT:
            steps.setdefault(message.step_id or message.id, []).extend(message.parts)
    return [part for parts in [*steps.values()][partial.finished_steps :] for part in parts]
