"""The server's own page in a tab: opening its views, and what holds in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser.pages import assert_accessible
from tests.support.browser import Browser, Page
from tests.support.commands import reattach_here
from tests.support.threads import Thread

TEXTS = "(all) => [...document.querySelectorAll(all)].map((one) => one.innerText.trim())"


@contextmanager
def view(
    browser: Browser, url: str, fragment: str = "", *, beside: Page | None = None
) -> Iterator[Page]:
    """Open a view. At the end the page must have had no error, no policy violation included."""
    with browser.page(f"{url}/#{fragment}", beside=beside) as page:
        yield page
        assert_no_error(page)


def assert_no_error(page: Page) -> None:
    errors = [line for line in page.log if line.startswith(("error", "pageerror"))]
    assert errors == [], errors


def assert_usable_by_everyone(page: Page) -> None:
    """Assert that axe-core finds nothing in the colours for day and for night."""
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        assert_accessible(page)


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(TEXTS, selector)
    return found


def answers(page: Page) -> list[str]:
    """Return the texts of the answers, without the marks of cuts in them."""
    code = """() => [...document.querySelectorAll('.answer')].map((one) => {
        const copy = one.cloneNode(true);
        for (const cut of copy.querySelectorAll('.cut')) cut.remove();
        return copy.textContent.trim();
    })"""
    found: list[str] = page.evaluate(code)
    return found


def wait_for_text(page: Page, selector: str, text: str) -> None:
    """Wait until an element of the selector contains the text."""
    code = f"([selector, text]) => ({TEXTS})(selector).some((one) => one.includes(text))"
    page.wait_until(code, [selector, text])


def chat_of(thread: Thread) -> str:
    """Return the fragment of a conversation."""
    return f"chat/{thread.agent_id}/{thread.path_id}"


def say(page: Page, text: str) -> None:
    """Send a message in the chat."""
    page.act("#message", "fill", text)
    page.act("#message", "press", "Enter")


def wait_for_end(page: Page) -> None:
    wait_for_text(page, ".following", "ended")


def background_run(thread: Thread, text: str) -> str:
    """Send a message with an event for each token, leave at once, and return the run's id."""
    body = {
        "agent_id": thread.agent_id,
        "messages": [{"role": "user", "content": text}],
        "background": True,
        "stream_tokens": True,
        "streaming": True,
    }
    path = f"/v1/conversations/{thread.path_id}/messages"
    with thread.raw.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        return str(answer.headers["x-run-id"])


def key_of(data_dir: Path, *scopes: str) -> str:
    """Create an API key. A server that has started without keys wants one within seconds."""
    options = [word for scope in scopes for word in ("--scope", scope)]
    made = reattach_here("keys", "create", "page", "--data-dir", str(data_dir), *options)
    assert made.status == 0, made.err
    return made.out.strip()
