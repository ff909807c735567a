"""Schemas of model and compaction settings of agents and conversations."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reattach.domain.limits.requests import MAX_CONTEXT_TOKENS
from reattach.http.schemas.fields import NUMERIC, Body, KeptObject, Word, kept_json

Tokens = Annotated[int, Field(ge=1, le=MAX_CONTEXT_TOKENS), NUMERIC]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Kept(_Open):
    """Settings whose members are all stored and returned, known or not."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        kept_json(self.kept())
        return self

    def kept(self) -> dict[str, Any]:
        """Return exactly the members that the client sent."""
        return self.model_dump(mode="json", exclude_unset=True)


class Reasoning(_Open):
    reasoning_effort: Effort | None = None


class ResponseFormat(_Open):
    type: Literal["text", "json_schema", "json_object"]
    json_schema: KeptObject | None = None


class ModelSettings(_Kept):
    """Model settings: known members are validated, and all are stored and returned."""

    provider_type: Word | None = None
    temperature: Annotated[float, Field(ge=0, le=2), NUMERIC] | None = None
    max_output_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    response_format: ResponseFormat | None = None
    strict: bool | None = None
    effort: Effort | None = None
    verbosity: Verbosity | None = None
    thinking: KeptObject | None = None
    thinking_config: KeptObject | None = None
    tool_call_parser: Word | None = None


class LegacyModelConfig(Body):
    """The older way to set a model, as ``llm_config``."""

    model: Word
    handle: Word | None = None
    model_endpoint_type: Word
    context_window: Tokens
    temperature: Annotated[float, Field(ge=0, le=2), NUMERIC] | None = None
    max_tokens: Tokens | None = None
    parallel_tool_calls: bool | None = None
    enable_reasoner: bool | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=0, le=MAX_CONTEXT_TOKENS), NUMERIC] | None = None
    reasoning_effort: Effort | None = None
    effort: Effort | None = None
    verbosity: Verbosity | None = None

    @property
    def model_handle(self) -> str:
        return self.handle or f"{self.model_endpoint_type}/{self.model}"

    def settings(self) -> dict[str, Any]:
        """Return the equivalent ``model_settings``."""
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "max_output_tokens": self.max_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "effort": self.effort,
            "verbosity": self.verbosity,
        }
        if self.reasoning_effort is not None:
            settings["reasoning"] = {"reasoning_effort": self.reasoning_effort}
        if self.enable_reasoner is not None:
            settings["thinking"] = {"type": "enabled" if self.enable_reasoner else "disabled"}
        if self.enable_reasoner is not False and self.max_reasoning_tokens:
            thinking = settings.get("thinking") or {"type": "enabled"}
            settings["thinking"] = {**thinking, "budget_tokens": self.max_reasoning_tokens}
        return {name: value for name, value in settings.items() if value is not None}


class CompactionSettings(_Kept):
    """How conversations that are too long for their model are compacted."""

    model: Word | None = None
    model_settings: ModelSettings | None = None
    prompt: Annotated[str, Field(max_length=20_000)] | None = None
    prompt_acknowledgement: bool | None = None
    clip_chars: Annotated[int, Field(ge=0, le=MAX_CONTEXT_TOKENS), NUMERIC] | None = None
    mode: (
        Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"] | None
    ) = None
    sliding_window_percentage: Annotated[float, Field(ge=0, le=1), NUMERIC] | None = None
