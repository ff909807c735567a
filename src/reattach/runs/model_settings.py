"""How a model is asked: the API's ``model_settings``, in the words of engines."""

from collections.abc import Mapping
from typing import Any

from reattach.engine.base import ModelSettings


def model_settings(settings: Mapping[str, Any]) -> ModelSettings:
    """What engines understand of the settings of an agent or a conversation."""
    reasoning = settings.get("reasoning") or {}
    return ModelSettings(
        temperature=settings.get("temperature"),
        max_output_tokens=settings.get("max_output_tokens"),
        reasoning_effort=reasoning.get("reasoning_effort"),
        parallel_tool_calls=settings.get("parallel_tool_calls"),
    )
