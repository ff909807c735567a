"""An engine that compacts turns that are too long for its model."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from typing import Final

from reattach.agent.compaction.summary import MIN_GAIN, Compactor, messages_of
from reattach.domain.clock import Clock
from reattach.domain.context import with_summaries_as_text
from reattach.domain.errors import ContextWindowError, SystemPromptTooLongError
from reattach.domain.ids import MessageId, new_message_id
from reattach.domain.messages import Message, Role, TextPart
from reattach.engine.base import (
    AnswerKept,
    Compacting,
    Delta,
    Engine,
    Model,
    StepFinished,
    Turn,
    Way,
    closing_deltas,
)
from reattach.engine.intake import Intake

BY_ESTIMATE: Final = "context_window_limit"
BY_MODEL: Final = "context_window_exceeded"

_SHRINKS_TO: Final = 0.5
"""The share of its estimated size to which a refused turn is compacted; there is one retry."""


class CompactingEngine(Engine):
    """Answers the steps of one run, each of which may include the output of earlier ones.

    A step that would fill the window is compacted first. A step that the model refuses as too long
    is compacted once and retried. Without a ``compactor``, turns pass unchanged.
    """

    def __init__(self, engine: Engine, compactor: Compactor | None, clock: Clock) -> None:
        self.announces_tools = engine.announces_tools
        self.own_tools = engine.own_tools
        self._engine = engine
        self._compactor = compactor
        self._clock = clock
        self._summary: Message | None = None
        self._replaced: set[MessageId] = set()
        self._known = 0
        """The number of messages of the newest turn, with which the next one begins."""
        self._step_of: dict[MessageId, int] = {}
        """The step of this run that produced a message which is not stored yet."""
        self._steps = 0
        self._first_step: int | None = None
        """The first step of the newest call of the engine."""
        self._has_begun = False

    def ways(self, turn: Turn) -> Collection[Way]:
        return self._engine.ways(turn)

    def models(self) -> Sequence[Model]:
        return self._engine.models()

    async def run(self, turn: Turn) -> AsyncIterator[Delta]:
        self._track_steps(turn)
        turn = self._with_summary(turn)
        trigger = BY_ESTIMATE if self._is_too_large(turn) else None
        for may_retry in (True, False):
            if trigger is not None:
                async with closing_deltas(self._compact(turn, trigger)) as compacting:
                    async for delta in compacting:
                        yield delta
                turn = self._with_summary(turn)
            self._first_step = self._steps
            self._has_begun = turn.partial is not None and bool(turn.partial.messages)
            # Made storable here already, because a tool loop returns the output to the model.
            intake = Intake()
            try:
                async with closing_deltas(self._engine.run(_request(turn))) as deltas:
                    async for given in deltas:
                        if type(given) is TextPart and intake.is_plain(given.text):  # Most deltas.
                            self._has_begun = True
                            yield given
                            continue
                        # The id of an answer shows nothing of it, and comes before a refusal.
                        self._has_begun = self._has_begun or not isinstance(given, AnswerKept)
                        for delta in intake.take(given):
                            self._note(delta, turn)
                            yield delta
                for delta in intake.release():
                    yield delta
                return
            except ContextWindowError as error:
                can_retry = may_retry and not self._has_begun
                if not can_retry or self._cut(turn, BY_MODEL) is None:
                    raise self._explain(error, turn) from None
            trigger = BY_MODEL
            turn = replace(turn, partial=None)  # Another answer replaces it.

    def _note(self, delta: Delta, turn: Turn) -> None:
        """Count a finished step, and learn from its usage."""
        if isinstance(delta, StepFinished):
            self._steps += 1
            if self._compactor is not None:
                self._compactor.learn(turn, delta.usage.prompt_tokens)

    async def _compact(self, turn: Turn, trigger: str) -> AsyncIterator[Delta]:
        compactor = self._compactor
        cut = self._cut(turn, trigger)
        assert compactor is not None
        assert cut is not None
        yield Compacting(trigger, compactor.tokens(turn), compactor.window_tokens)
        made, end = await compactor.compact(
            turn, cut, trigger, into_tokens=self._into_tokens(turn, trigger), may_drop=True
        )
        self._replaced |= {one.id for one in messages_of(turn)[:end]}
        self._summary = Message(
            id=new_message_id(),
            role=Role.SUMMARY,
            parts=(made.summary,),
            created_at=self._clock.now(),
        )
        self._steps += 1
        assert made.summary.kept_from is not None
        yield replace(made, kept_from_step=self._step_of.get(made.summary.kept_from))

    def _is_too_large(self, turn: Turn) -> bool:
        """Whether the turn exceeds the limit and compacting it is worthwhile."""
        compactor = self._compactor
        if compactor is None or compactor.tokens(turn) <= compactor.limit_tokens:
            return False
        if turn.partial is not None:
            return False  # A summary would split the answer that goes on, or come after it.
        cut = self._cut(turn, BY_ESTIMATE)
        enough = MIN_GAIN * compactor.limit_tokens
        return cut is not None and compactor.gain(turn, cut) >= enough

    def _cut(self, turn: Turn, trigger: str) -> int | None:
        compactor = self._compactor
        if compactor is None:
            return None
        return compactor.cut(turn, into_tokens=self._into_tokens(turn, trigger))

    def _into_tokens(self, turn: Turn, trigger: str) -> float:
        """Return the window that the compacted turn has to fit."""
        assert self._compactor is not None
        window = self._compactor.window_tokens
        if trigger == BY_MODEL:  # The window or the estimate is wrong.
            return min(window, _SHRINKS_TO * self._compactor.tokens(turn))
        return window

    def _track_steps(self, turn: Turn) -> None:
        """Note which messages belong to this run: those that appear between two calls."""
        if self._first_step is None:
            if self._compactor is not None:
                self._compactor.learn_last(turn)
        else:
            for message in turn.history[self._known :]:
                if message.role is Role.ASSISTANT:
                    self._step_of[message.id] = self._first_step
        self._known = len(turn.history) + len(turn.input)

    def _with_summary(self, turn: Turn) -> Turn:
        """Return the turn with the summary in place of the replaced messages."""
        if self._summary is None:
            return turn
        left = [one for one in turn.history if one.id not in self._replaced]
        sent = [one for one in turn.input if one.id not in self._replaced]
        return replace(turn, history=[self._summary, *left], input=sent)

    def _explain(self, error: ContextWindowError, turn: Turn) -> ContextWindowError:
        compactor = self._compactor
        if compactor is None or compactor.overhead_tokens(turn) < compactor.window_tokens:
            return error
        return SystemPromptTooLongError(
            f"The system prompt and the tools fill the context window of {turn.model}, "
            f"{compactor.window_tokens} tokens. Shorten the agent's system prompt or its memory "
            "blocks, or choose a model with a larger window."
        )


def _request(turn: Turn) -> Turn:
    """Return the turn as the engine gets it."""
    return replace(
        turn,
        history=with_summaries_as_text(turn.history),
        input=with_summaries_as_text(turn.input),
    )
