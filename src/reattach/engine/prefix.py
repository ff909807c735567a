"""Continuing an answer by prefix: what can be continued, and how the rest joins the text so far."""

from dataclasses import dataclass, replace
from typing import Final

from reattach.domain.errors import ModelError
from reattach.domain.messages import Message, Role, TextPart, ToolReturnPart
from reattach.engine.base import Partial, Turn, Way

PREFIX_OR_STEP: Final = frozenset({Way.PREFIX, Way.STEP})


@dataclass(frozen=True, slots=True)
class Prefix:
    """A turn whose newest step has text, and nothing but text, to be continued by prefix."""

    turn: Turn
    """The turn with its finished steps as history, and without the unfinished one."""
    text: str
    """The text so far of the unfinished step; not empty."""


def prefix_of(turn: Turn) -> Prefix | None:
    """Return how ``turn.partial`` is continued by prefix; None if it cannot be.

    It cannot be after reasoning, which models do not get again, or after a call. Nor can it be if
    an assistant's message comes before, because servers refuse two of them at the end.
    """
    if turn.partial is None:
        return None
    _, unfinished = _split(turn.partial)
    if unfinished is None or not all(isinstance(part, TextPart) for part in unfinished.parts):
        return None
    turn = without_partial(turn)
    before = (*turn.history, *turn.input)
    if not unfinished.text or (before and before[-1].role is Role.ASSISTANT):
        return None
    return Prefix(turn, unfinished.text)


def without_partial(turn: Turn) -> Turn:
    """Return the turn for its next step: its finished steps are history, an unfinished one is not.

    Due calls that have returned are not due any more.
    """
    if turn.partial is None:
        return turn
    finished, _ = _split(turn.partial)
    if not finished:
        return replace(turn, partial=None)
    returned = {
        part.tool_call_id
        for message in finished
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    }
    return replace(
        turn,
        history=[*turn.history, *turn.input, *finished],
        input=(),
        due=[call for call in turn.due if call.tool_call_id not in returned],
        partial=None,
    )


def refuse_to_repeat(turn: Turn) -> None:
    """Raise ModelError if the unfinished step has text, which another call would say again."""
    if turn.partial is None:
        return
    answers = [one for one in turn.partial.messages if one.role is Role.ASSISTANT]
    if any(one.text for one in answers[turn.partial.finished_steps :]):
        raise ModelError(
            f"The interrupted answer cannot be continued, because {turn.model} would begin it "
            "again. Send the message again, with a new OTID."
        )


def _split(partial: Partial) -> tuple[list[Message], Message | None]:
    """Return the messages of the finished steps, and the last message if its step has not finished.

    An assistant's message has the whole output of a step.
    """
    answers = [n for n, message in enumerate(partial.messages) if message.role is Role.ASSISTANT]
    if len(answers) <= partial.finished_steps:
        return list(partial.messages), None
    first = answers[partial.finished_steps]
    unfinished = partial.messages[first:]
    return list(partial.messages[:first]), unfinished[0] if len(unfinished) == 1 else None


@dataclass(frozen=True, slots=True)
class Rest:
    """The rest of an answer, as a model produced it after the text so far."""

    text: str
    """Without the text so far, if the server repeated it."""
    has_reasoning: bool
    was_repeated: bool


class Seam:
    """Joins the rest of an answer to its text so far.

    The text is sent without the whitespace at its end, because tokens rarely end there; the model
    produces that whitespace again. Some servers repeat the whole text before the rest.
    """

    def __init__(self, text: str, *, may_echo: bool) -> None:
        """``may_echo`` says whether the rest may begin with the text that was sent."""
        self.sent: Final = text.rstrip()
        """The text to send. If it is empty, the model gets no beginning of its answer."""
        self._whitespace = text[len(self.sent) :]
        self._echo = self.sent if may_echo else ""
        self._held = ""
        self.was_repeated = False
        """Whether the rest began with the text that was sent."""

    def take(self, text: str) -> str:
        """Return the new part of a piece of the rest; empty if there is none yet."""
        if self._echo:
            self._held += text
            if self._echo.startswith(self._held) and self._held != self._echo:
                return ""
            self.was_repeated = self._held.startswith(self._echo)
            text = self._held.removeprefix(self._echo)
            self._echo = self._held = ""
        return self._without_repeated_whitespace(text)

    def flush(self) -> str:
        """Return text that was held back as a possible repetition. Other output follows."""
        text = self._without_repeated_whitespace(self._held)
        self._echo = self._held = self._whitespace = ""
        return text

    def _without_repeated_whitespace(self, text: str) -> str:
        while self._whitespace and text:
            if text[0] != self._whitespace[0]:
                self._whitespace = ""
                break
            self._whitespace, text = self._whitespace[1:], text[1:]
        return text
