"""The engine of hosted models makes the right run of every form that a provider answers in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from reattach.domain.errors import ModelError
from reattach.domain.events import StopReason
from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.testing.conformance.engine import Subject, collect
from reattach.testing.providers.anthropic import FORMS
from reattach.testing.providers.conformance import AnthropicForms, OpenAIForms
from reattach.testing.providers.openai import CLOSING
from reattach.testing.providers.openai_ends import ENDS
from reattach.testing.providers.outcome import outcome
from reattach.testing.providers.server import Provider, provider

MARK_ONLY = {"openai": "end-no-reason", "anthropic": "end-no-message-delta"}
"""The forms whose only sign of an end is the mark in the body."""

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage with `genai-prices`")


class TestChatCompletions(OpenAIForms):
    """A3, A4, A5, A8, A10, A11, A12: the forms of OpenAI's dialect, one test each."""

    model = "openai/small"

    @pytest.fixture(scope="class")
    async def engine(self, provider: Provider) -> AsyncIterator[PydanticAIEngine]:
        engine = PydanticAIEngine(
            [self.model],
            openai_base_url=f"{provider.url}/v1",
            openai_api_key="sk-test",
            max_retries=0,
        )
        yield engine
        await engine.aclose()


class TestMessages(AnthropicForms):
    """A3, A5, A8, A10, A11, A12: the forms of Anthropic's dialect, one test each."""

    model = "anthropic/claude-test"

    @pytest.fixture(scope="class")
    async def engine(self, provider: Provider) -> AsyncIterator[PydanticAIEngine]:
        # Imported here, because it takes two seconds.
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        asked = AnthropicProvider(base_url=provider.url, api_key="sk-ant-test")
        model = AnthropicModel("claude-test", provider=asked)
        engine = PydanticAIEngine(models={self.model: model}, max_retries=0)
        yield engine
        await engine.aclose()


@pytest.mark.parametrize(
    ("dialect", "path", "remedy"),
    [
        ("openai", "", "set REATTACH_OPENAI_BASE_URL to a URL that ends in /v1"),
        ("openai", "/", "set REATTACH_OPENAI_BASE_URL to a URL that ends in /v1"),
        ("openai", "/v2", None),
        ("anthropic", "/v1", "leave out /v1 in ANTHROPIC_BASE_URL"),
    ],
)
async def test_a_base_url_of_a_wrong_depth_is_recognized(
    monkeypatch: pytest.MonkeyPatch, dialect: str, path: str, remedy: str | None
) -> None:
    """A12: a path that is not found says how the base URL should end."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    async with provider([], CLOSING) as served:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"{served.url}{path}")
        handle = f"{dialect}/claude-test"
        engine = PydanticAIEngine([handle], openai_base_url=f"{served.url}{path}", max_retries=0)
        with pytest.raises(ModelError) as raised:
            await collect(engine, Subject(engine, handle).turn())
        await engine.aclose()
    assert "404 page not found" in raised.value.detail
    assert (remedy or "no remedy") in raised.value.detail or remedy is None
    assert ("/v1" in raised.value.detail) is (remedy is not None)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_bodies_of_models_by_handle_are_watched(
    monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    """A3: the clients still have their HTTP client where it is looked for."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    form = next(one for one in (*ENDS, *FORMS) if one.name == MARK_ONLY[dialect])
    async with provider([form], CLOSING) as served:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", served.url)
        handle = f"{dialect}/claude-test"
        engine = PydanticAIEngine([handle], openai_base_url=f"{served.url}/v1", max_retries=0)
        made = await outcome(engine, handle, form)
        await engine.aclose()
    assert (made.text, made.stopped.reason) == ("Hello.", StopReason.END_TURN)
