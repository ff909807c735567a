"""The pages of the recipes, in a real browser: cuts, reloads, Stop, failed answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.browser import DIRECTORY, Browser, Page, PageServer
from tests.support.javascript_client import PACKAGE, require_client
from tests.support.missing import skip_or_fail
from tests.support.threads import Thread, raw_client

EXAMPLES = Path(__file__).parents[2] / "examples"
AXE = DIRECTORY / "node_modules/axe-core/axe.min.js"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="module")
def raw(server: ServerProcess) -> Iterator[httpx.Client]:
    with raw_client(server.url) as raw:
        yield raw


@pytest.fixture
def relay(server: ServerProcess) -> Iterator[Relay]:
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture
def page(browser: Browser, relay: Relay) -> Iterator[Page]:
    """The page without a framework, opened anew, with the server behind the relay."""
    require_client()
    html = (EXAMPLES / "page/index.html").read_text()
    assert html.count("http://localhost:8283") == 1
    files: dict[str, str | bytes] = {
        "/": html.replace("http://localhost:8283", relay.url),
        "/reattach.js": (PACKAGE / "dist/index.js").read_bytes(),
    }
    with PageServer(files) as pages, browser.page(pages.url) as page:
        yield page
        assert not [line for line in page.log if line.startswith("pageerror")]


def ask(page: Page, question: str) -> None:
    page.act("#text", "fill", question)
    page.act("#text", "press", "Enter")


def wait_for_status(page: Page, status: str) -> None:
    page.wait_until("(said) => document.querySelector('#status').textContent === said", status)


def wait_for_words(page: Page, count: int) -> None:
    """Wait until the page shows this many words of the answer."""
    words = "document.querySelector('.assistant')?.textContent.split(' ')"
    page.wait_until(f"(least) => {words}?.length > least", count)


def shown(page: Page) -> list[str]:
    """Return the messages on the page, each with its author."""
    texts: list[str] = page.evaluate(
        "() => [...document.querySelectorAll('#messages li')].map((item) => item.textContent)"
    )
    return texts


def conversation_of(page: Page, raw: httpx.Client) -> Thread:
    conversation = page.evaluate("() => new URLSearchParams(location.search).get('conversation')")
    agent = raw.get(f"/v1/conversations/{conversation}").json()["agent_id"]
    return Thread(raw, agent, conversation)


def statuses_of(thread: Thread) -> list[str]:
    """Return the statuses of the runs of the conversation, oldest first."""
    conversation = thread.conversation_id
    return [run["status"] for run in thread.runs() if run["conversation_id"] == conversation]


def assert_accessible(page: Page) -> None:
    if not AXE.is_file():
        skip_or_fail("axe-core is not installed: run scripts/setup")
    page.evaluate("(code) => { new Function(code)(); }", AXE.read_text())
    violations = "(await axe.run()).violations.map(({ id, nodes }) => [id, nodes[0].html])"
    assert page.evaluate(f"async () => {violations}") == []


@pytest.mark.promise("P4", "P6", "P8")
def test_a_page_without_a_framework_shows_a_whole_answer_over_a_cut_and_a_reload(
    page: Page, relay: Relay, raw: httpx.Client
) -> None:
    assert page.act("#empty", "isVisible")
    assert_accessible(page)
    question = "[chunks=120][rate=100]"
    ask(page, question)
    wait_for_words(page, 10)
    relay.cut()
    wait_for_words(page, 30)
    page.reload()
    wait_for_words(page, 50)
    assert not page.act("#empty", "isVisible")
    wait_for_status(page, "The answer is complete.")
    thread = conversation_of(page, raw)
    whole = [f"You: {question}", f"Answer: {thread.text()}"]
    assert shown(page) == whole
    page.reload()
    page.wait_until("() => document.querySelectorAll('#messages li').length === 2")
    assert shown(page) == whole
    assert_accessible(page)


@pytest.mark.promise("P4")
def test_a_message_that_a_cut_network_swallowed_is_sent_once_when_the_page_is_reloaded(
    page: Page, relay: Relay, raw: httpx.Client
) -> None:
    ask(page, "first")
    wait_for_status(page, "The answer is complete.")
    relay.swallow()
    ask(page, "second")
    page.wait_until("() => document.querySelectorAll('#messages li').length === 3")
    relay.mend()
    page.reload()
    page.wait_until("() => document.querySelectorAll('#messages li').length === 4")
    wait_for_status(page, "The answer is complete.")
    assert shown(page) == ["You: first", "Answer: first", "You: second", "Answer: second"]
    thread = conversation_of(page, raw)
    assert statuses_of(thread) == ["completed"] * 2


def test_the_stop_button_ends_the_run_and_keeps_the_beginning_of_the_answer(
    page: Page, raw: httpx.Client
) -> None:
    ask(page, "[chunks=10000][rate=100]")
    wait_for_words(page, 10)
    page.act("#stop", "click")
    wait_for_status(page, "Stopped.")
    thread = conversation_of(page, raw)
    assert statuses_of(thread) == ["cancelled"]
    assert shown(page)[1] == f"Answer: {thread.text()}"
    assert page.act("#send", "isVisible")


def test_a_failed_answer_is_reported_and_html_of_a_model_is_shown_as_text(page: Page) -> None:
    ask(page, "[fail=2][chunks=5]")
    wait_for_status(page, "The answer failed.")
    assert shown(page)[-1].startswith("Answer: The answer failed: The scripted model failed")
    html = "<img src=x onerror='document.title = 1'> & <b>bold</b>"
    ask(page, html)
    wait_for_status(page, "The answer is complete.")
    assert shown(page)[-1] == f"Answer: {html}"
    assert page.evaluate("() => document.images.length") == 0


def test_a_question_waits_in_the_field_while_another_tab_gets_its_answer(
    browser: Browser, page: Page, raw: httpx.Client
) -> None:
    ask(page, "[chunks=10000][rate=100]")
    wait_for_words(page, 3)
    thread = conversation_of(page, raw)
    with browser.page(page.evaluate("() => location.href"), beside=page) as other:
        wait_for_words(other, 3)
        page.act("#stop", "click")
        wait_for_status(other, "Stopped.")
        ask(page, "[chunks=10000][rate=100]")
        page.wait_until("() => document.querySelectorAll('.assistant').length === 2")
        ask(other, "mine")
        other.wait_until("() => document.querySelectorAll('.assistant').length === 2")
        assert other.act("#text", "inputValue") == "mine"
        other.act("#stop", "click")
        wait_for_status(other, "Stopped.")
        wait_for_status(page, "Stopped.")
        assert shown(other) == shown(page)
    assert statuses_of(thread) == ["cancelled"] * 2
