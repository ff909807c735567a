"""An agent's reasoning settings reach each provider in the form that it knows.

The SDKs of providers are imported where they are used, because each takes a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from reattach.agent.model_settings import model_settings
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.testing.conformance.engine import Subject, collect, text_of
from tests.support.openai_server import OpenAIServer, openai_server
from tests.support.provider_server import ProviderServer, provider_server

EFFORT = {"reasoning": {"reasoning_effort": "low"}}
NO_EFFORT = {"reasoning": {"reasoning_effort": "none"}}
BUDGET = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
ON, OFF = {"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}


@pytest.fixture
async def openai() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
async def others() -> AsyncIterator[ProviderServer]:
    async with provider_server() as server:
        yield server


async def asked(engine: PydanticAIEngine, handle: str, settings: Mapping[str, Any]) -> None:
    """Ask the model with these ``model_settings`` of an agent."""
    turn = replace(Subject(engine, handle).turn("hi"), settings=model_settings(settings))
    try:
        assert text_of(await collect(engine, turn)) == "hi"
    finally:
        await engine.aclose()


@pytest.mark.parametrize(
    ("name", "settings", "effort"),
    [
        ("gpt-5.1", EFFORT, "low"),
        ("gpt-5.1", NO_EFFORT, "none"),
        ("gpt-5.1", OFF, "none"),
        ("gpt-5.1", {"effort": "high"}, "high"),
        ("gpt-5.1", BUDGET, "low"),
        ("gpt-5.1", {"thinking": {"type": "enabled", "budget_tokens": 20_000}}, "high"),
        ("gpt-5.1", {}, None),
        ("small", EFFORT, "low"),
        ("small", {}, None),
        ("small", OFF, None),
    ],
    ids=repr,
)
async def test_openai_receives_a_reasoning_effort(
    openai: OpenAIServer, name: str, settings: Any, effort: str | None
) -> None:
    engine = PydanticAIEngine(
        [f"openai/{name}"], openai_base_url=openai.base_url, openai_api_key="sk-test"
    )
    await asked(engine, f"openai/{name}", {**settings, "verbosity": "low"})
    (request,) = openai.requests
    assert request.get("reasoning_effort") == effort
    assert request["verbosity"] == "low"


def anthropic(server: ProviderServer, name: str) -> PydanticAIEngine:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(api_key="sk-test", base_url=server.base_url)
    return PydanticAIEngine(models={"anthropic/x": AnthropicModel(name, provider=provider)})


@pytest.mark.parametrize(
    ("settings", "thinking", "max_tokens"),
    [
        (BUDGET, {"type": "enabled", "budget_tokens": 2000}, 10_192),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5}, "temperature": 0.5},
            {"type": "enabled", "budget_tokens": 1024},
            9216,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 4000}, "max_output_tokens": 3000},
            {"type": "enabled", "budget_tokens": 1500},
            3000,
        ),
        ({**BUDGET, "max_output_tokens": 1500}, {"type": "disabled"}, 1500),
        (OFF, {"type": "disabled"}, None),
    ],
    ids=repr,
)
async def test_anthropic_receives_a_budget_below_its_max_tokens(
    others: ProviderServer, settings: Any, thinking: Any, max_tokens: int | None
) -> None:
    await asked(anthropic(others, "claude-haiku-4-5"), "anthropic/x", settings)
    (request,) = others.requests
    assert (request.get("thinking") or {"type": "disabled"}) == thinking
    assert max_tokens in {None, request["max_tokens"]}
    assert "temperature" not in request


async def test_anthropic_receives_an_effort_in_its_own_setting(others: ProviderServer) -> None:
    await asked(anthropic(others, "claude-opus-4-6"), "anthropic/x", {"effort": "medium"})
    (request,) = others.requests
    assert request["output_config"]["effort"] == "medium"


async def test_an_anthropic_model_that_takes_no_budget_thinks_without_one(
    others: ProviderServer,
) -> None:
    await asked(anthropic(others, "claude-opus-4-7"), "anthropic/x", BUDGET)
    (request,) = others.requests
    assert "budget_tokens" not in str(request)


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        (
            {"thinking_config": {"include_thoughts": True, "thinking_budget": 2000}},
            {"include_thoughts": True, "thinking_budget": 2000},
        ),
        ({"thinking_config": {"include_thoughts": False}}, {"include_thoughts": False}),
        ({"thinking_config": {"thinking_budget": 0}}, {"thinking_budget": 0}),
        ({"thinking_config": {"thinking_budget": -1}}, None),
        (EFFORT, {"include_thoughts": True, "thinking_budget": 2048}),
    ],
    ids=repr,
)
async def test_google_receives_a_thinking_budget(
    others: ProviderServer, settings: Any, config: Any
) -> None:
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    provider = GoogleProvider(api_key="test", base_url=others.base_url)
    model = GoogleModel("gemini-2.5-flash", provider=provider)
    await asked(PydanticAIEngine(models={"google_ai/x": model}), "google_ai/x", settings)
    (request,) = others.requests
    thinking = request["generationConfig"].get("thinkingConfig")
    assert thinking == config


async def test_openrouter_receives_an_effort_in_its_own_setting(openai: OpenAIServer) -> None:
    from pydantic_ai.models.openrouter import OpenRouterModel
    from pydantic_ai.providers.openrouter import OpenRouterProvider

    provider = OpenRouterProvider(api_key="sk-test")
    provider.client.base_url = openai.base_url
    model = OpenRouterModel("anthropic/claude-sonnet-4.5", provider=provider)
    await asked(PydanticAIEngine(models={"openrouter/x": model}), "openrouter/x", EFFORT)
    (request,) = openai.requests
    assert request["reasoning"]["effort"] == "low"
