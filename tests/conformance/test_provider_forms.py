"""The engine of hosted models makes the right run of every form that a provider answers in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from reattach.engine.pydantic_ai import PydanticAIEngine
from reattach.testing.providers.conformance import OpenAIForms
from reattach.testing.providers.server import Provider

pytestmark = pytest.mark.filterwarnings("ignore:Failed to extract usage with `genai-prices`")


class TestChatCompletions(OpenAIForms):
    """A3, A4, A5, A8, A10, A11: the forms of OpenAI's dialect, one test each."""

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
