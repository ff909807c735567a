"""Spans of runs: attempts, and in them the model calls and tools."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from typing_extensions import override

from reattach.domain.context import summary_count
from reattach.domain.context_messages import ContextMessages
from reattach.domain.errors import EngineError
from reattach.domain.events import RunStatus, Usage
from reattach.domain.messages import Role, ToolCallPart, ToolReturnPart
from reattach.records.base import Run, Settlement, StepRecord
from reattach.runs.attempts.policy import Interruption
from reattach.runs.observing.observer import (
    AttemptOutcome,
    ObservedAttempt,
    RunObserver,
    Takeover,
)
from reattach.telemetry import content
from reattach.telemetry import conventions as names
from reattach.telemetry.contexts import (
    SpanIds,
    attempt_span_id,
    context_of,
    enter,
    reenter,
    traceparent_of,
)
from reattach.telemetry.sends import OpenSend

_LOST: Final = "owner_lost"
"""The ``error.type`` of an attempt whose process died."""


@dataclass(slots=True)
class _ModelCall:
    """A call of the model that may be under way. Its span is dropped if it was none."""

    span: Span
    asked_ns: int
    step_id: str | None = None
    """The step, once it has output."""


@dataclass(slots=True)
class _Attempt:
    """The open spans of one attempt."""

    span: Span
    context: Context
    ready_ns: int
    """When the model could have been asked."""
    model_call: _ModelCall | None = None
    tools: dict[str, Span] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    is_compacted: bool | None = None
    """Whether the history has a summary; None: not known yet."""
    settlement: Settlement | None = None


class RunSpans(RunObserver):
    """Makes the spans of the runs of one process.

    ``ids`` are those of the tracer; without them, ids of attempts are random. ``with_content`` adds
    the messages to the spans.
    """

    def __init__(self, tracer: Tracer, ids: SpanIds | None, *, with_content: bool) -> None:
        self._tracer = tracer
        self._ids = ids
        self._with_content = with_content
        self._attempts: dict[str, _Attempt] = {}
        self.sends: dict[str, OpenSend] = {}
        """The open spans of sends, by traceparent."""

    # Runs.

    @override
    def traceparent(self) -> str:
        span = trace.get_current_span()
        if not span.get_span_context().is_valid:
            span = self._tracer.start_span("send", Context())
            span.end()
        return traceparent_of(span.get_span_context())

    @override
    def run_began(self, run: Run) -> None:
        send = self.sends.get(run.traceparent or "")
        if send is not None:
            send.run_began(run.id)

    @override
    def run_ended(self, run: Run, settlement: Settlement) -> None:
        attempt = self._attempts.get(run.id)
        if attempt is not None:
            attempt.settlement = settlement

    @override
    def run_taken_over(self, takeover: Takeover) -> None:
        run = takeover.run
        if takeover.interruption is Interruption.HANDOVER:
            return  # Its process reported the attempt itself.
        span = self._start_attempt(
            run,
            takeover.attempt_number,
            takeover.agent_name,
            takeover.attempt_began_at,
            {
                names.RECOVERED: True,
                names.ATTEMPT_OUTCOME: AttemptOutcome.LOST.value,
                names.ERROR_TYPE: _LOST,
            },
        )
        span.set_status(Status(StatusCode.ERROR, "The process that made the attempt is gone."))
        if takeover.settlement is not None:
            _set_end(span, takeover.settlement)
        span.end(_ns(takeover.attempt_ended_at))

    # Attempts.

    @override
    def attempt_began(self, attempt: ObservedAttempt) -> None:
        attributes: dict[str, Any] = {names.ATTEMPT_FIRST_SEQ: attempt.first_seq}
        if attempt.way is not None and attempt.interruption is not None:
            attributes[names.ATTEMPT_WAY] = attempt.way
            attributes[names.ATTEMPT_INTERRUPTION] = attempt.interruption.value
        span = self._start_attempt(
            attempt.run, attempt.number, attempt.agent_name, attempt.began_at, attributes
        )
        self._attempts[attempt.run_id] = _Attempt(span, enter(span), time.time_ns())

    def _start_attempt(
        self,
        run: Run,
        number: int,
        agent_name: str,
        began_at: datetime,
        attributes: Mapping[str, Any],
    ) -> Span:
        provider, model = names.split_handle(run.model)
        if self._ids is not None:
            self._ids.following = attempt_span_id(run.id, number)
        return self._tracer.start_span(
            f"{names.INVOKE_AGENT} {agent_name}".rstrip(),
            context_of(run.traceparent),
            SpanKind.INTERNAL,
            {
                names.OPERATION_NAME: names.INVOKE_AGENT,
                names.PROVIDER_NAME: provider,
                names.REQUEST_MODEL: model,
                names.AGENT_NAME: agent_name,
                names.CONVERSATION_ID: run.thread.key,
                names.AGENT_ID: run.thread.agent_id,
                names.RUN_ID: run.id,
                names.TENANT: run.tenant,
                names.ATTEMPT: number,
                **attributes,
            },
            start_time=_ns(began_at),
        )

    @override
    def attempt_ended(
        self, attempt: ObservedAttempt, outcome: AttemptOutcome, error: BaseException | None
    ) -> None:
        opened = self._attempts.pop(attempt.run_id, None)
        if opened is None or outcome is AttemptOutcome.LOST:
            return  # Recovery reports it; a span that has not ended is never exported.
        for tool in opened.tools.values():
            tool.set_attribute(names.ERROR_TYPE, "interrupted")
            tool.end()
        call = opened.model_call
        if call is not None and (call.step_id is not None or error is not None):
            _set_error(call.span, error)
            self._end_model_call(attempt, opened, call)
        span = opened.span
        span.set_attribute(names.ATTEMPT_OUTCOME, outcome.value)
        span.set_attribute(names.ATTEMPT_LAST_SEQ, attempt.last_seq)
        if opened.input_tokens or opened.output_tokens:
            span.set_attribute(names.INPUT_TOKENS, opened.input_tokens)
            span.set_attribute(names.OUTPUT_TOKENS, opened.output_tokens)
        _set_error(span, error)
        if opened.settlement is not None:
            _set_end(span, opened.settlement)
        span.end()

    # Model calls.

    @override
    def model_asked(self, attempt: ObservedAttempt) -> None:
        opened = self._attempts.get(attempt.run_id)
        if opened is not None:
            opened.ready_ns = time.time_ns()
            self._begin_model_call(attempt, opened)

    def _begin_model_call(self, attempt: ObservedAttempt, opened: _Attempt) -> _ModelCall:
        provider, model = names.split_handle(attempt.run.model)
        attributes: dict[str, Any] = {
            names.OPERATION_NAME: names.CHAT,
            names.PROVIDER_NAME: provider,
            names.REQUEST_MODEL: model,
            names.REQUEST_STREAM: True,
            names.CONVERSATION_ID: attempt.run.thread.key,
            names.RUN_ID: attempt.run_id,
        }
        turn = attempt.turn
        if turn is not None:
            if opened.is_compacted is None:
                opened.is_compacted = bool(ContextMessages.of(turn.history).total(summary_count))
            if opened.is_compacted or attempt.has_summary:
                attributes[names.CONVERSATION_COMPACTED] = True
            asked = {
                names.REQUEST_TEMPERATURE: turn.settings.temperature,
                names.REQUEST_MAX_TOKENS: turn.settings.max_output_tokens,
            }
            attributes |= {name: value for name, value in asked.items() if value is not None}
            if self._with_content:
                sent = [*turn.history, *turn.input, *attempt.output()]
                attributes[names.SYSTEM_INSTRUCTIONS] = content.instructions_json(turn.system)
                attributes[names.INPUT_MESSAGES] = content.messages_json(sent)
        span = self._tracer.start_span(
            f"{names.CHAT} {model}",
            opened.context,
            SpanKind.CLIENT,
            attributes,
            start_time=opened.ready_ns,
        )
        enter(span)
        call = opened.model_call = _ModelCall(span, opened.ready_ns)
        return call

    @override
    def step_began(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        opened = self._attempts.get(attempt.run_id)
        if opened is None:
            return
        call = opened.model_call
        if call is None or call.step_id is not None:
            call = self._begin_model_call(attempt, opened)
        call.step_id = step.id
        seconds = (time.time_ns() - call.asked_ns) / 1e9
        call.span.set_attribute(names.TIME_TO_FIRST_CHUNK, seconds)
        call.span.set_attribute(names.STEP_ID, step.id)

    @override
    def step_ended(self, attempt: ObservedAttempt, step: StepRecord) -> None:
        opened = self._attempts.get(attempt.run_id)
        if opened is None or opened.model_call is None:
            return
        usage = step.usage
        opened.input_tokens += usage.prompt_tokens
        opened.output_tokens += usage.completion_tokens
        _set_usage(opened.model_call.span, usage)
        if step.model is not None and step.model != attempt.run.model:  # The model of summaries.
            provider, model = names.split_handle(step.model)
            opened.model_call.span.update_name(f"{names.CHAT} {model}")
            opened.model_call.span.set_attribute(names.PROVIDER_NAME, provider)
            opened.model_call.span.set_attribute(names.REQUEST_MODEL, model)
        self._end_model_call(attempt, opened, opened.model_call)
        opened.ready_ns = time.time_ns()
        reenter(opened.context)

    def _end_model_call(self, attempt: ObservedAttempt, opened: _Attempt, call: _ModelCall) -> None:
        opened.model_call = None
        if self._with_content and call.step_id is not None:
            answer = [
                one
                for one in attempt.output()
                if one.step_id == call.step_id and one.role is not Role.TOOL
            ]
            call.span.set_attribute(names.OUTPUT_MESSAGES, content.messages_json(answer))
        call.span.end()

    # Tools.

    @override
    def tool_began(self, attempt: ObservedAttempt, call_id: str, name: str) -> None:
        opened = self._attempts.get(attempt.run_id)
        if opened is None:
            return
        if opened.model_call is not None and opened.model_call.step_id is None:
            opened.model_call = None  # The model was not asked.
        attributes: dict[str, Any] = {
            names.OPERATION_NAME: names.EXECUTE_TOOL,
            names.TOOL_NAME: name,
            names.TOOL_CALL_ID: call_id,
            names.TOOL_TYPE: "function",
            names.RUN_ID: attempt.run_id,
        }
        if self._with_content:
            attributes[names.TOOL_CALL_ARGUMENTS] = content.cut(_arguments(attempt, call_id))
        span = self._tracer.start_span(
            f"{names.EXECUTE_TOOL} {name}", opened.context, SpanKind.INTERNAL, attributes
        )
        opened.tools[call_id] = span
        enter(span)

    @override
    def tool_ended(self, attempt: ObservedAttempt, returned: ToolReturnPart) -> None:
        opened = self._attempts.get(attempt.run_id)
        span = None if opened is None else opened.tools.pop(returned.tool_call_id, None)
        if opened is None or span is None:
            return
        if returned.status == "error":
            span.set_attribute(names.ERROR_TYPE, "tool_error")
            span.set_status(Status(StatusCode.ERROR))
        if self._with_content:
            span.set_attribute(names.TOOL_CALL_RESULT, content.cut(returned.output))
        span.end()
        reenter(opened.context)


def _set_usage(span: Span, usage: Usage) -> None:
    for name, value in (
        (names.INPUT_TOKENS, usage.prompt_tokens),
        (names.OUTPUT_TOKENS, usage.completion_tokens),
        (names.CACHE_READ_TOKENS, usage.cached_input_tokens),
        (names.CACHE_WRITE_TOKENS, usage.cache_write_tokens),
        (names.REASONING_TOKENS, usage.reasoning_tokens),
    ):
        if value is not None:
            span.set_attribute(name, value)


def _set_error(span: Span, error: BaseException | None) -> None:
    if error is not None:
        kind = error.code if isinstance(error, EngineError) else type(error).__name__
        span.set_attribute(names.ERROR_TYPE, kind)
        span.set_status(Status(StatusCode.ERROR))


def _set_end(span: Span, settlement: Settlement) -> None:
    """Say how the run ended on the span of its last attempt."""
    span.set_attribute(names.RUN_STATUS, settlement.status.value)
    span.set_attribute(names.STOP_REASON, settlement.stop_reason.value)
    if settlement.status is RunStatus.FAILED:
        if settlement.error is not None:
            span.set_attribute(names.ERROR_TYPE, settlement.error.error_type)
        span.set_status(Status(StatusCode.ERROR))


def _arguments(attempt: ObservedAttempt, call_id: str) -> str:
    """Return the arguments of a call, which the run or, after an approval, an earlier one made."""
    turn = attempt.turn
    for message in (*attempt.output(), *(() if turn is None else turn.history)):
        for part in message.parts:
            if isinstance(part, ToolCallPart) and part.tool_call_id == call_id:
                return part.arguments
    return ""


def _ns(at: datetime) -> int:
    """Return the time in nanoseconds since 1970."""
    return round(at.timestamp() * 1e6) * 1000
