"""Schemas of runs, their usage and their steps."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

from pydantic import ConfigDict, Field

from reattach.domain.events import Usage
from reattach.engine.base import Model
from reattach.http.schemas.fields import Answer, StopReasonName, UtcTime, members_of, shown_time
from reattach.records.base import Run, Step
from reattach.records.runs.lists.summaries import RunSummary
from reattach.runs.answers import metadata_of
from reattach.wire.letta import MessageType

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class RequestConfig(Answer):
    model_config = ConfigDict(from_attributes=True)

    use_assistant_message: bool | None = True
    assistant_message_tool_name: str | None = "send_message"
    assistant_message_tool_kwarg: str | None = "message"
    include_return_message_types: list[MessageType] | None = None


class RunState(Answer):
    """One turn of an agent, from the message that starts it to its end."""

    id: str
    agent_id: str
    conversation_id: str | None = Field(description="Null in the agent's default conversation.")
    status: Literal["created", "running", "completed", "failed", "cancelled"]
    stop_reason: StopReasonName | None
    background: bool
    created_at: UtcTime
    completed_at: UtcTime | None
    metadata: dict[str, Any] = Field(
        description="`run_type`; `error` if the run failed; `attempts` if it was interrupted."
    )
    request_config: RequestConfig
    base_template_id: str | None = None
    callback_url: str | None = None
    callback_sent_at: UtcTime | None = None
    callback_status_code: int | None = None
    callback_error: str | None = None
    ttft_ns: int | None = Field(None, description="Time to the first event of an ended run, in ns.")
    total_duration_ns: int | None


def run_state(run: RunSummary, *, for_token: bool = False) -> dict[str, Any]:
    """Return the members of a ``RunState``, for JSON.

    With ``for_token``, those that the holder of a stream token may not see have no value.
    """
    config = run.request_config
    return {
        "id": run.id,
        "agent_id": run.agent_id,
        "conversation_id": run.conversation_id,
        "status": run.status,
        "stop_reason": run.stop_reason,
        "background": run.background,
        "created_at": shown_time(run.created_at),
        "completed_at": shown_time(run.completed_at),
        "metadata": metadata_of(run),
        "request_config": {
            "use_assistant_message": config.use_assistant_message,
            "assistant_message_tool_name": config.assistant_message_tool_name,
            "assistant_message_tool_kwarg": config.assistant_message_tool_kwarg,
            "include_return_message_types": config.include_return_message_types,
        },
        "base_template_id": None,
        "callback_url": None if for_token else run.callback_url,
        "callback_sent_at": None if for_token else shown_time(run.callback_sent_at),
        "callback_status_code": None if for_token else run.callback_status_code,
        "callback_error": None if for_token else run.callback_error,
        "ttft_ns": _ttft_ns(run),
        "total_duration_ns": run.duration_ns,
    }


def run_states(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    return [run_state(run) for run in runs]


def _ttft_ns(run: RunSummary) -> int | None:
    """Return the time to the first event of an ended run, if it is recorded."""
    if run.first_event_at is None:
        return None
    return (run.first_event_at - run.created_at) // timedelta(microseconds=1) * 1000


class PromptTokens(Answer):
    cached_tokens: int | None
    cache_read_tokens: int | None
    cache_creation_tokens: int | None


class CompletionTokens(Answer):
    reasoning_tokens: int | None


class RunUsage(Answer):
    """Token usage of a run; zero until the run has ended."""

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None
    completion_tokens_details: CompletionTokens | None

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls(
            **members_of(usage, cls),
            prompt_tokens_details=_prompt_tokens(usage),
            completion_tokens_details=None
            if usage.reasoning_tokens is None
            else CompletionTokens(reasoning_tokens=usage.reasoning_tokens),
        )


def _prompt_tokens(usage: Usage) -> PromptTokens | None:
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    if cached is None and written is None:
        return None
    return PromptTokens(
        cached_tokens=cached, cache_read_tokens=cached, cache_creation_tokens=written
    )


class StepState(Answer):
    """One model call within a run."""

    id: str
    origin: str | None = None
    organization_id: str
    provider_id: str | None = None
    run_id: str
    agent_id: str
    provider_name: str | None
    provider_category: str = "base"
    model: str | None
    model_handle: str | None
    model_endpoint: str | None = None
    context_window_limit: int | None
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    completion_tokens_details: CompletionTokens | None
    prompt_tokens_details: PromptTokens | None
    stop_reason: StopReasonName | None
    tags: list[str] = Field(default_factory=list)
    tid: str | None = None
    trace_id: str | None = None
    request_id: str | None = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    feedback: Literal["positive", "negative"] | None = None
    project_id: str | None = None
    error_type: str | None
    error_data: dict[str, Any] | None = None
    status: Literal["pending", "success", "failed", "cancelled"]

    @classmethod
    def of(cls, step: Step, tenant: str, model: Model | None) -> Self:
        provider, _, name = (step.model or "").partition("/")
        own = members_of(step, cls) | {"model": name or None}
        return cls(
            **members_of(step.usage, cls) | dict(RunUsage.of(step.usage)) | own,
            organization_id=tenant,
            provider_name=provider or None,
            model_handle=step.model,
            context_window_limit=None if model is None else model.context_window_tokens,
        )


class RunMetrics(Answer):
    """Duration of a run; null until the run has ended."""

    id: str
    organization_id: str
    agent_id: str
    project_id: str | None = None
    run_start_ns: int = Field(description="Start of the run, in ns since 1970.")
    run_ns: int | None = Field(description="Duration of the run, in ns.")
    num_steps: int | None
    tools_used: list[str] | None = None
    template_id: str | None = None
    base_template_id: str | None = None

    @classmethod
    def of(cls, run: Run) -> Self:
        began = run.created_at - _EPOCH
        return cls(
            id=run.id,
            organization_id=run.tenant,
            agent_id=run.thread.agent_id,
            run_start_ns=((began.days * 86_400 + began.seconds) * 1_000_000 + began.microseconds)
            * 1000,
            run_ns=run.duration_ns,
            num_steps=None if run.usage is None else run.usage.step_count,
        )
