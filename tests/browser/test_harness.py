"""The browser of these tests has the security of a real one, which its package turns off."""

from __future__ import annotations

import pytest

from tests.support.browser import Browser, BrowserError, PageServer

GET = "async (url) => (await fetch(url)).text()"


def test_a_page_cannot_read_what_another_origin_answers(browser: Browser) -> None:
    files = {"/": "<p>page</p>"}
    with PageServer(files) as one, PageServer(files) as other, browser.page(one.url) as page:
        assert page.evaluate(GET, one.url) == "<p>page</p>"
        with pytest.raises(BrowserError, match="Failed to fetch"):
            page.evaluate(GET, other.url)
        assert any("CORS policy" in line for line in page.log)
