"""Schemas of models."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self, get_args

from pydantic import Field

from reattach.agent.model_settings import model_settings
from reattach.engine.base import Model
from reattach.http.schemas.fields import Answer

ProviderType = Literal[
    "anthropic",
    "azure",
    "baseten",
    "bedrock",
    "cerebras",
    "chatgpt_oauth",
    "deepseek",
    "fireworks",
    "google_ai",
    "google_vertex",
    "groq",
    "hugging-face",
    "letta",
    "lmstudio_openai",
    "minimax",
    "moonshot",
    "moonshot_coding",
    "mistral",
    "ollama",
    "openai",
    "together",
    "vllm",
    "sglang",
    "openrouter",
    "xai",
    "zai",
    "zai_coding",
]

_PROVIDERS: Final = frozenset(get_args(ProviderType))
_ENDPOINTS: Final = _PROVIDERS - {"cerebras", "fireworks", "letta", "lmstudio_openai", "sglang"}
"""Endpoint types that the SDKs know."""

FALLBACK_CONTEXT_TOKENS: Final = 128_000
"""Reported for models that this server does not offer at present."""


def provider_type_of(name: str) -> str:
    """Return a provider type that the SDKs know; unknown providers count as ``openai``."""
    return name if name in _PROVIDERS else "openai"


def endpoint_type_of(name: str) -> str:
    return name if name in _ENDPOINTS else "openai"


class ModelConfig(Answer):
    """Connection and default settings of an agent's model."""

    model: str = Field(description="Name of the model at its provider.")
    handle: str | None = Field(description="Handle of the model, `provider/name`.")
    display_name: str | None = None
    model_endpoint_type: str
    model_endpoint: str | None = None
    provider_name: str | None = None
    provider_category: Literal["base", "byok"] = "base"
    model_wrapper: str | None = None
    context_window: int = Field(description="In tokens.")
    put_inner_thoughts_in_kwargs: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    enable_reasoner: bool = False
    reasoning_effort: str | None = None
    max_reasoning_tokens: int = 0
    effort: str | None = None
    frequency_penalty: float | None = None
    compatibility_type: str | None = None
    verbosity: str | None = None
    tier: str | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    strict: bool = False
    return_logprobs: bool = False
    top_logprobs: int | None = None
    return_token_ids: bool = False
    tool_call_parser: str | None = None

    @classmethod
    def of(cls, handle: str | None, model: Model | None) -> Self:
        """Return the configuration of a model, or of a handle that is not offered at present."""
        if model is not None:
            return cls(
                model=model.name,
                handle=model.handle,
                display_name=model.display_name,
                model_endpoint_type=endpoint_type_of(model.provider_type),
                provider_name=model.provider_name,
                context_window=model.context_window_tokens,
                max_tokens=model.max_output_tokens,
            )
        provider, _, name = (handle or "").partition("/")
        return cls(
            model=name or provider,
            handle=handle,
            model_endpoint_type=endpoint_type_of(provider),
            provider_name=provider or None,
            context_window=FALLBACK_CONTEXT_TOKENS,
        )

    def apply(self, settings: Mapping[str, Any]) -> None:
        """Copy ``model_settings`` into the older members."""
        asked = model_settings(settings)
        self.temperature = asked.temperature
        self.max_tokens = asked.max_output_tokens or self.max_tokens
        self.parallel_tool_calls = asked.parallel_tool_calls
        self.reasoning_effort = asked.reasoning_effort
        self.effort = asked.effort
        self.verbosity = asked.verbosity
        self.max_reasoning_tokens = asked.reasoning_tokens or 0
        self.enable_reasoner = asked.reasons or bool(asked.reasoning_tokens)


class ModelBody(ModelConfig):
    """A model that agents of this server can use."""

    name: str
    provider_type: str
    model_type: Literal["llm"] = "llm"
    max_context_window: int = Field(description="In tokens.")

    @classmethod
    def offered(cls, model: Model) -> Self:
        config = ModelConfig.of(model.handle, model)
        return cls(
            **config.model_dump(),
            name=model.name,
            provider_type=provider_type_of(model.provider_type),
            max_context_window=model.context_window_tokens,
        )
