"""Programs that a test needs and that may not be installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(why_not: str) -> NoReturn:
    """Skip the test, or fail it in CI, where every program has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why_not}; CI runs these tests")
    pytest.skip(why_not)
