"""Tests of an engine with every form: subclass ``OpenAIForms`` or ``AnthropicForms``.

>>> class TestMyEngine(OpenAIForms):
...     model = "mine/small"
...
...     @pytest.fixture
...     def engine(self, provider):
...         return MyEngine(base_url=f"{provider.url}/v1")

The engine calls ``provider`` and must not retry failed requests. The tests
are coroutines and need AnyIO's pytest plugin in its ``auto`` mode.
"""

from collections import Counter
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from reattach.engine.base import Engine
from reattach.testing.providers import anthropic, openai, openai_ends, openai_errors
from reattach.testing.providers.forms import Form
from reattach.testing.providers.outcome import Outcome, outcome
from reattach.testing.providers.server import Provider, provider

_OPENAI = (
    *openai.TEXT,
    *openai.CALLS,
    *openai_ends.USAGE,
    *openai_ends.ENDS,
    *openai_errors.ERRORS,
)


class ProviderForms:
    """The fixtures that both dialects share."""

    model: ClassVar[str]
    """The handle of the model under test; a subclass must set it."""

    @pytest.fixture
    def engine(self, provider: Provider) -> Engine:
        """Provide the engine under test; a subclass must override it."""
        raise NotImplementedError


class OpenAIForms(ProviderForms):
    """OpenAI's chat completions, below ``/v1`` of the provider."""

    @pytest.fixture(scope="class")
    async def provider(self) -> AsyncIterator[Provider]:
        async with provider(_OPENAI, openai.CLOSING) as served:
            yield served

    @pytest.mark.parametrize("form", _OPENAI, ids=lambda form: form.name)
    async def test_a_form_produces_its_run(self, engine: Engine, form: Form) -> None:
        assert_run(form, await outcome(engine, self.model, form))


class AnthropicForms(ProviderForms):
    """Anthropic's messages, at the origin of the provider."""

    @pytest.fixture(scope="class")
    async def provider(self) -> AsyncIterator[Provider]:
        async with provider(anthropic.FORMS, anthropic.CLOSING) as served:
            yield served

    @pytest.mark.parametrize("form", anthropic.FORMS, ids=lambda form: form.name)
    async def test_a_form_produces_its_run(self, engine: Engine, form: Form) -> None:
        assert_run(form, await outcome(engine, self.model, form))


def assert_run(form: Form, made: Outcome) -> None:
    """Assert that the run is the one that the form must produce."""
    expected = form.run
    assert made.text == expected.text
    assert made.reasoning == expected.reasoning
    assert made.stopped.reason.run_status == expected.status, made.error
    assert made.stopped.reason == expected.stop_reason, made.error
    assert expected.error in made.error
    assert bool(made.error) <= (expected.status == "failed")
    assert tuple(made.ran) == expected.ran
    returned = {one.tool_call_id for one in made.returns}
    assert len(returned) == len(made.returns)
    assert len({call.tool_call_id for call in made.calls}) == len(made.calls)
    waiting = [call for call in made.calls if call.tool_call_id not in returned]
    assert Counter(call.name for call in waiting) == Counter(expected.waiting)
    assert all(call.needs_approval for call in waiting)
    assert sum(one.status == "error" for one in made.returns) == expected.refused
    if expected.prompt_tokens is not None:
        assert made.usage.prompt_tokens == expected.prompt_tokens
    if expected.completion_tokens is not None:
        assert made.usage.completion_tokens == expected.completion_tokens
