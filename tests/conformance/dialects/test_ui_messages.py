from __future__ import annotations

import pytest

from reattach.testing.conformance.dialect import DialectConformance
from reattach.wire.dialects.ui_messages import UiMessages


class TestUiMessages(DialectConformance):
    @pytest.fixture
    def dialect(self) -> UiMessages:
        return UiMessages()
