from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, require_browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The browser of all tests of the process. Each test opens its own pages."""
    with Browser(require_browser()) as browser:
        yield browser
