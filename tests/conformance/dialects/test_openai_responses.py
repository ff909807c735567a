from __future__ import annotations

import pytest

from reattach.testing.conformance.dialect import DialectConformance
from reattach.wire.dialects.openai_responses import Responses


class TestResponses(DialectConformance):
    @pytest.fixture
    def dialect(self) -> Responses:
        return Responses()
