"""The API's ``model_settings``, translated to those of engines."""

from collections.abc import Mapping
from typing import Any

from reattach.engine.base import ModelSettings


def model_settings(settings: Mapping[str, Any]) -> ModelSettings:
    """Return the settings of an agent or a conversation that engines support."""
    reasoning = settings.get("reasoning") or {}
    thinking = settings.get("thinking") or {}
    config = settings.get("thinking_config") or {}
    reasons = {"enabled": True, "disabled": False}.get(str(thinking.get("type")))
    tokens = _tokens(thinking.get("budget_tokens"))
    if tokens is None:
        tokens = _tokens(config.get("thinking_budget"))
    shows = config.get("include_thoughts")
    return ModelSettings(
        temperature=settings.get("temperature"),
        max_output_tokens=settings.get("max_output_tokens"),
        reasoning_effort=reasoning.get("reasoning_effort"),
        reasons=reasons,
        reasoning_tokens=tokens,
        shows_reasoning=shows if isinstance(shows, bool) else None,
        effort=settings.get("effort"),
        verbosity=settings.get("verbosity"),
        parallel_tool_calls=settings.get("parallel_tool_calls"),
    )


def _tokens(value: object) -> int | None:
    """Return a budget; None leaves it to the model, as does -1."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
