from __future__ import annotations

import pytest

from reattach.testing.conformance.dialect import DialectConformance
from reattach.wire.dialects.chat_completions import ChatCompletions


class TestChatCompletions(DialectConformance):
    @pytest.fixture(params=[False, True], ids=["plain", "with usage"])
    def dialect(self, request: pytest.FixtureRequest) -> ChatCompletions:
        return ChatCompletions(includes_usage=request.param)
