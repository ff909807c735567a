"""Using the pages of the recipes as a person does, and reading them."""

from __future__ import annotations

from typing import Final

from tests.support.browser import DIRECTORY, Page
from tests.support.missing import skip_or_fail
from tests.support.threads import Thread

ENDLESS: Final = "[chunks=10000][rate=100]"
"""A question whose answer goes on until it is cancelled."""

_AXE: Final = DIRECTORY / "node_modules/axe-core/axe.min.js"


def ask(page: Page, question: str) -> None:
    page.wait_until("() => !document.querySelector('#send')?.disabled")
    page.act("#text", "fill", question)
    page.act("#text", "press", "Enter")


def wait_for_status(page: Page, status: str) -> None:
    page.wait_until("(said) => document.querySelector('#status').textContent === said", status)


def listed(page: Page) -> list[str]:
    """Return the items of the page's list."""
    code = "() => [...document.querySelectorAll('li')].map((item) => item.textContent)"
    texts: list[str] = page.evaluate(code)
    return texts


def statuses_of(thread: Thread) -> list[str]:
    """Return the statuses of the runs of the conversation, oldest first."""
    conversation = thread.conversation_id
    return [run["status"] for run in thread.runs() if run["conversation_id"] == conversation]


def assert_accessible(page: Page) -> None:
    if not _AXE.is_file():
        skip_or_fail("axe-core is not installed: run scripts/setup")
    page.evaluate(f"() => {{ {_AXE.read_text()} }}")
    violations = "(await axe.run()).violations.map(({ id, nodes }) => [id, nodes[0].html])"
    found = page.evaluate(f"async () => {violations}")
    assert found == [], found
