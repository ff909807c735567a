"""The settings of a turn, translated to those of its provider."""

from collections.abc import Mapping
from typing import Any, Final, cast

from pydantic_ai.settings import ModelSettings as ProviderSettings
from pydantic_ai.settings import ThinkingEffort

from reattach.engine.base import ModelSettings

_EFFORTS: Final = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})

MIN_BUDGET_TOKENS: Final = 1024
"""Anthropic's smallest budget for reasoning."""

ANSWER_TOKENS: Final = 8192
"""The tokens for the answer beside such a budget, by default."""

_BUDGETS: Final = ((2048, "low"), (8192, "medium"))
"""The effort for a budget, for providers without budgets; above: high."""


def provider_settings(
    asked: ModelSettings, provider: str, profile: Mapping[str, Any], *, has_tools: bool
) -> ProviderSettings:
    """Return the settings for a model of ``provider`` (Pydantic AI's name) with that profile.

    Settings that the provider does not support are left out.
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
        # OpenAI-compatible servers do not report whether their models reason.
        settings["openai_reasoning_effort"] = effort
    if settings.get("thinking") is not False:
        _set_budget(settings, asked, provider, profile)
    return cast("ProviderSettings", settings)


def _effort(asked: ModelSettings, provider: str) -> str | None:
    """Return the effort of reasoning: ``none``, or one of Pydantic AI's."""
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
            settings.setdefault("thinking", True)  # These models choose the budget themselves.
            return
        tokens = max(tokens, MIN_BUDGET_TOKENS)
        output_tokens = settings.setdefault("max_tokens", tokens + ANSWER_TOKENS)
        if tokens >= output_tokens:
            tokens = output_tokens // 2  # The budget is part of the output tokens.
        settings.pop("thinking", None)
        if tokens >= MIN_BUDGET_TOKENS:
            settings.pop("temperature", None)  # Anthropic refuses it with reasoning.
            settings["anthropic_thinking"] = {"type": "enabled", "budget_tokens": tokens}
    elif provider in {"google", "google-cloud"} and (tokens or asked.shows_reasoning is not None):
        config: dict[str, Any] = {"include_thoughts": asked.shows_reasoning is not False}
        if tokens:
            config["thinking_budget"] = tokens
        settings["google_thinking_config"] = config
