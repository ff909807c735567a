"""Compaction: a model's summary replaces the older part of a conversation's context."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

import structlog

from reattach.agent.model_settings import model_settings
from reattach.domain.backoff import Backoff
from reattach.domain.clock import Clock
from reattach.domain.context import (
    BYTES_PER_TOKEN,
    choose_cut,
    clip,
    cuts,
    message_tokens,
    messages_tokens,
    text_tokens,
    tools_tokens,
    transcript,
)
from reattach.domain.context_messages import ContextMessages
from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelEmptyResponseError,
    ModelTimeoutError,
)
from reattach.domain.events import Usage
from reattach.domain.ids import new_message_id
from reattach.domain.limits import (
    MIN_SUMMARY_CHARS,
    SUMMARY_PART_CHARS,
    SUMMARY_SECONDS,
    SUMMARY_TOKENS,
)
from reattach.domain.messages import CompactionStats, Message, Role, SummaryPart, TextPart
from reattach.domain.text import storable_text
from reattach.engine.base import (
    Compacted,
    Engine,
    ModelSettings,
    StepFinished,
    Turn,
    closing_deltas,
)
from reattach.engine.intake import storable_usage

logger = structlog.get_logger(__name__)

FILL: Final = 0.9
"""The share of the window above which a context is compacted; the rest is for the answer."""

MIN_GAIN: Final = 0.1
"""The share of the limit that a compaction must free to be worth its cost."""

_SCALE_BOUNDS: Final = (0.25, 4.0)
"""The bounds of the correction of estimates by a provider's counts."""

_RETRIES: Final = 2
"""Further attempts at a summary; the run that needs it waits."""

_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 4.0
"""The first wait before another attempt, and the longest unless the provider asks for more."""

Mode = Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"]

PROMPT: Final = (
    "You keep the memory of a conversation that has become too long for its assistant. Write a "
    "summary from which the assistant can go on as if it had read everything: what the user wants, "
    "what was said, decided and done, names, numbers, paths and results of tools that still "
    "matter, and what is still open. If the conversation begins with an earlier summary, what "
    "still matters of that belongs into yours. Answer with the summary and nothing else."
)
_ACKNOWLEDGED: Final = "Understood. I will answer with the summary and nothing else."
_REQUEST: Final = "<conversation>\n{}</conversation>\n\nWrite the summary of this conversation."
_NO_SUMMARY: Final = "(The {} older messages are left out. No summary of them could be made.)"
_MORE_LEFT_OUT: Final = "\n\n({} messages after that are left out as well.)"


@dataclass(frozen=True, slots=True)
class Plan:
    """How an agent's conversations are compacted: the API's ``compaction_settings``."""

    model: str | None = None
    """The handle of the model that makes summaries; None: the agent's own."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    prompt: str = PROMPT
    acknowledges: bool = False
    clip_chars: int | None = 50_000
    """The maximum length of a summary."""
    mode: Mode = "sliding_window"
    kept_share: float = 0.3
    """The share of the context window that the sliding window modes keep."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the plan for the settings, with defaults for missing ones."""
        given = {name: value for name, value in settings.items() if value is not None}
        plan = cls(
            model=given.get("model"),
            settings=model_settings(given.get("model_settings") or {}),
            prompt=given.get("prompt") or PROMPT,
            acknowledges=given.get("prompt_acknowledgement", False),
            mode=given.get("mode", "sliding_window"),
            kept_share=given.get("sliding_window_percentage", 0.3),
        )
        if "clip_chars" in settings:
            plan = replace(plan, clip_chars=settings["clip_chars"])
        return plan

    @property
    def is_by_agent(self) -> bool:
        """Whether the agent makes the summary itself, with its own model and system prompt."""
        return self.mode in {"self_compact_all", "self_compact_sliding_window"}

    @property
    def keeps(self) -> float:
        """The share of the window that is kept unchanged."""
        return self.kept_share if self.mode.endswith("sliding_window") else 0.0


@dataclass(frozen=True, slots=True)
class Summarizer:
    """A model that makes summaries."""

    engine: Engine
    model: str
    window_tokens: int
    settings: ModelSettings


class Compactor:
    """Makes the summaries of one conversation, whose model has a window of ``window_tokens``.

    Sizes are estimates, corrected by the provider's counts (``learn``).
    """

    def __init__(
        self,
        plan: Plan,
        summarizer: Summarizer,
        clock: Clock,
        *,
        window_tokens: int,
        answer_tokens: int = 0,
    ) -> None:
        """``answer_tokens`` is the most that an answer may have; it counts towards the window."""
        self.window_tokens = window_tokens
        self._answer_tokens = answer_tokens
        self._plan = plan
        self._summarizer = summarizer
        self._clock = clock
        self._scale = 1.0
        self._history: tuple[Sequence[Message], ContextMessages] = ((), ContextMessages())

    @property
    def limit_tokens(self) -> float:
        """The limit for the system prompt, the tools and the messages together."""
        return self._limit(self.window_tokens)

    def _limit(self, window_tokens: float) -> float:
        return min(
            window_tokens * FILL, window_tokens - min(self._answer_tokens, window_tokens / 2)
        )

    def learn(self, turn: Turn, counted_tokens: int | None) -> None:
        """Correct the estimates by the provider's count of the whole prompt of the turn."""
        self._learn(turn, self._messages_tokens(turn), counted_tokens)

    def _learn(self, turn: Turn, message_tokens: int, counted_tokens: int | None) -> None:
        if not counted_tokens:
            return
        estimate = _overhead(turn) + message_tokens
        low, high = _SCALE_BOUNDS
        self._scale = min(max(counted_tokens / max(estimate, 1), low), high)

    def learn_last(self, turn: Turn) -> None:
        """Correct the estimates by the count of the last answer in the turn's history."""
        history = self._history_of(turn)
        places = range(len(history) - 1, -1, -1)
        last = next((n for n in places if history[n].role is Role.ASSISTANT), 0)
        before = history.total(message_tokens) - history.total(message_tokens, last)
        self._learn(turn, before, turn.counted_tokens)

    def _history_of(self, turn: Turn) -> ContextMessages:
        """Return the turn's history with its totals, which are kept while the turn stays."""
        given, history = self._history
        if given is not turn.history:
            history = ContextMessages.of(turn.history)
            self._history = turn.history, history
        return history

    def _messages_tokens(self, turn: Turn) -> int:
        return self._history_of(turn).total(message_tokens) + messages_tokens(turn.input)

    def tokens(self, turn: Turn) -> int:
        """Estimate the prompt of the turn."""
        return round(self._scale * (_overhead(turn) + self._messages_tokens(turn)))

    def overhead_tokens(self, turn: Turn) -> int:
        """Estimate the part of the prompt that no compaction can remove."""
        return round(self._scale * _overhead(turn))

    def cut(self, turn: Turn, *, into_tokens: float) -> int | None:
        """Return where to cut the messages to fit ``into_tokens``; None if that is impossible."""
        return choose_cut(messages_of(turn), self._plan.keeps * into_tokens / self._scale)

    def gain(self, turn: Turn, cut: int) -> int:
        """Estimate the messages before the cut, without earlier summaries."""
        left = (one for one in messages_of(turn)[:cut] if one.role is not Role.SUMMARY)
        return round(self._scale * messages_tokens(left))

    async def compact(
        self, turn: Turn, cut: int, trigger: str, *, into_tokens: float, may_drop: bool
    ) -> tuple[Compacted, int]:
        """Return the summary of the messages before ``cut``, and the end of the replaced messages.

        If the rest does not fit into ``into_tokens``, more of the oldest messages are replaced and
        the summary is shortened. If no summary can be made, a note replaces it with ``may_drop``;
        otherwise EngineError is raised.
        """
        messages = messages_of(turn)
        before = self.tokens(turn)
        try:
            text, usage = await self._summary(turn, messages[:cut])
        except EngineError as error:
            if not may_drop:
                raise
            logger.warning("no summary could be made", run_id=turn.run_id, reason=error.detail)
            text, usage = _NO_SUMMARY.format(cut), Usage()
        limit = self._limit(into_tokens)
        end = self._fitting(turn, messages, cut, limit)
        if end > cut:
            text += _MORE_LEFT_OUT.format(end - cut)
        left = self._scale * (_overhead(turn) + messages_tokens(messages[end:]))
        room = int((limit - left) / self._scale) * BYTES_PER_TOKEN
        text = clip(text, max(room, MIN_SUMMARY_CHARS))
        first = 1 if turn.system else 0
        stats = CompactionStats(
            trigger,
            self.window_tokens,
            first + len(messages),
            first + 1 + len(messages) - end,
            before,
            round(left + self._scale * text_tokens(text)),
        )
        summary = SummaryPart(text, messages[end].id, stats)
        return Compacted(summary, usage, self._summarizer.model), end

    def _fitting(self, turn: Turn, messages: Sequence[Message], cut: int, limit: float) -> int:
        """Return the first cut that leaves room for a summary, else the last one."""
        later = [place for place in cuts(messages) if place >= cut]
        room = MIN_SUMMARY_CHARS / BYTES_PER_TOKEN
        for place in later:
            left = _overhead(turn) + messages_tokens(messages[place:]) + room
            if self._scale * left <= limit:
                return place
        return later[-1]

    @property
    def _output_tokens(self) -> int:
        """The maximum of a summary."""
        asked = self._summarizer.settings.max_output_tokens
        return asked or max(256, min(SUMMARY_TOKENS, self._summarizer.window_tokens // 4))

    async def _summary(self, turn: Turn, old: Sequence[Message]) -> tuple[str, Usage]:
        """Return a summary, after further attempts if a failure may pass."""
        backoff = Backoff(_RETRY_SECONDS, _LONGEST_RETRY_SECONDS, clock=self._clock)
        while True:
            try:
                return await self._fitting_summary(turn, old)
            except EngineError as error:
                if not error.may_pass or backoff.failures >= _RETRIES:
                    raise
                seconds = max(backoff.next_seconds(), error.retry_after_seconds or 0.0)
                await self._clock.sleep(seconds)

    async def _fitting_summary(self, turn: Turn, old: Sequence[Message]) -> tuple[str, Usage]:
        window = self._summarizer.window_tokens
        room = window * FILL - min(self._output_tokens, window / 2) - text_tokens(self._plan.prompt)
        chars = int(max(room, window / 4) / self._scale) * BYTES_PER_TOKEN
        try:
            return await self._request_summary(turn, old, chars)
        except ContextWindowError:
            return await self._request_summary(turn, old, chars // 3)

    async def _request_summary(
        self, turn: Turn, old: Sequence[Message], limit_chars: int
    ) -> tuple[str, Usage]:
        """Ask the model for a summary once. Raises EngineError."""
        texts: list[str] = []
        usage = Usage(step_count=1)
        request = self._request(turn, transcript(old, limit_chars, part_chars=SUMMARY_PART_CHARS))
        try:
            async with (
                asyncio.timeout(SUMMARY_SECONDS),
                closing_deltas(self._summarizer.engine.run(request)) as deltas,
            ):
                async for delta in deltas:
                    match delta:
                        case TextPart(text):
                            texts.append(text)
                        case StepFinished(usage=counted):
                            usage = storable_usage(counted)
                        case _:
                            pass
        except TimeoutError as error:
            raise ModelTimeoutError(f"{request.model} made no summary in time.") from error
        summary = storable_text("".join(texts)).strip()
        if not summary:
            raise ModelEmptyResponseError(f"{request.model} made no summary.")
        limit = self._plan.clip_chars
        return (summary if limit is None else clip(summary, limit)), usage

    def _request(self, turn: Turn, conversation: str) -> Turn:
        plan, summarizer = self._plan, self._summarizer
        asked = _REQUEST.format(conversation)
        history: list[Message] = []
        if plan.acknowledges:
            history = [
                self._message(Role.USER, plan.prompt),
                self._message(Role.ASSISTANT, _ACKNOWLEDGED),
            ]
        return Turn(
            run_id=turn.run_id,
            agent_id=turn.agent_id,
            conversation_id=turn.conversation_id,
            model=summarizer.model,
            system=turn.system if plan.is_by_agent else plan.prompt,
            history=history,
            input=[
                self._message(Role.USER, f"{plan.prompt}\n\n{asked}" if plan.is_by_agent else asked)
            ],
            max_steps=1,
            settings=replace(summarizer.settings, max_output_tokens=self._output_tokens),
        )

    def _message(self, role: Role, text: str) -> Message:
        return Message(
            id=new_message_id(), role=role, parts=(TextPart(text),), created_at=self._clock.now()
        )


def messages_of(turn: Turn) -> list[Message]:
    """Return the messages that the model gets with the turn."""
    return [*turn.history, *turn.input]


def _overhead(turn: Turn) -> int:
    return text_tokens(turn.system) + tools_tokens([*turn.client_tools, *turn.tools])
