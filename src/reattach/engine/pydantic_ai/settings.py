"""How a model is asked, in the settings of its provider."""

from collections.abc import Mapping
from typing import Any, Final, cast

from pydantic_ai.settings import ModelSettings as ProviderSettings
from pydantic_ai.settings import ThinkingEffort

from reattach.engine.base import ModelSettings

_EFFORTS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})

MIN_BUDGET_TOKENS: Final = 1024
"""The smallest budget for reasoning that Anthropic takes."""

ANSWER_TOKENS: Final = 8192
"""What is left for the answer beside such a budget, where nobody says how much."""

_BUDGETS: Final = ((2048, "low"), (8192, "medium"))
"""What a budget comes to as an effort, for providers that know no budgets; above: high."""


def provider_settings(
    asked: ModelSettings, provider: str, profile: Mapping[str, Any], *, has_tools: bool
) -> ProviderSettings:
    """The settings for a model of ``provider``, Pydantic AI's name, with that profile.

    What its provider can not be told is left out.
    """
    settings: dict[str, Any] = {}
    if asked.temperature is not None:
        settings["temperature"] = asked.temperature
    if asked.max_output_tokens is not None:
        settings["max_tokens"] = asked.max_output_tokens
    if asked.parallel_tool_calls is not None and has_tools:
        settings["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.verbosity is not None:
        settings["openai_text_verbosity"] = asked.verbosity
    if asked.effort is not None and profile.get("anthropic_supports_effort", False):
        settings["anthropic_effort"] = asked.effort
    effort = _effort(asked, provider)
    if asked.reasons is False or asked.reasoning_tokens == 0 or effort == "none":
        settings["thinking"] = False
    elif effort is not None:
        settings["thinking"] = cast("ThinkingEffort", effort)
    elif asked.reasons:
        settings["thinking"] = True
    if not profile.get("supports_thinking", False) and effort is not None:
        # Servers that speak OpenAI's dialect have models of which nobody knows whether they reason.
        settings["openai_reasoning_effort"] = effort
    if settings.get("thinking") is not False:
        _set_budget(settings, asked, provider, profile)
    return cast("ProviderSettings", settings)


def _effort(asked: ModelSettings, provider: str) -> str | None:
    """How much the model is to reason: none, or one of Pydantic AI's efforts."""
    effort = asked.reasoning_effort
    if effort is None and provider != "anthropic":
        effort = asked.effort
    if effort is None and asked.reasoning_tokens and provider not in {"anthropic", "google"}:
        tokens = asked.reasoning_tokens
        effort = next((name for most, name in _BUDGETS if tokens <= most), "high")
    return effort if effort == "none" or effort in _EFFORTS else None


def _set_budget(
    settings: dict[str, Any], asked: ModelSettings, provider: str, profile: Mapping[str, Any]
) -> None:
    tokens = asked.reasoning_tokens
    if provider == "anthropic" and tokens:
        if profile.get("anthropic_disallows_budget_thinking", False):
            settings.setdefault("thinking", True)  # Those models choose a budget themselves.
            return
        tokens = max(tokens, MIN_BUDGET_TOKENS)
        output_tokens = settings.setdefault("max_tokens", tokens + ANSWER_TOKENS)
        if tokens >= output_tokens:
            tokens = output_tokens // 2  # The budget is part of what the model may give.
        settings.pop("thinking", None)
        if tokens >= MIN_BUDGET_TOKENS:
            settings.pop("temperature", None)  # Refused with reasoning.
            settings["anthropic_thinking"] = {"type": "enabled", "budget_tokens": tokens}
    elif provider in {"google", "google-cloud"} and (tokens or asked.shows_reasoning is not None):
        config: dict[str, Any] = {"include_thoughts": asked.shows_reasoning is not False}
        if tokens:
            config["thinking_budget"] = tokens
        settings["google_thinking_config"] = config
