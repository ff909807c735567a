"""The pages of the recipes, in a real browser: cuts, reloads, Stop, failed answers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.browser.pages import (
    ENDLESS,
    ask,
    assert_accessible,
    listed,
    statuses_of,
    wait_for_status,
)
from tests.browser.react import build
from tests.clients.conftest import scripted_server
from tests.support.application_server import EXAMPLES
from tests.support.browser import Browser, Page, PageServer
from tests.support.javascript_client import PACKAGE, require_client
from tests.support.threads import Thread, Threads, raw_client


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


def wait_for_words(page: Page, count: int) -> None:
    """Wait until the page shows this many words of the answer."""
    words = "document.querySelector('.assistant')?.textContent.split(' ')"
    page.wait_until(f"(least) => {words}?.length > least", count)


def conversation_of(page: Page, raw: httpx.Client) -> Thread:
    conversation = page.evaluate("() => new URLSearchParams(location.search).get('conversation')")
    agent = raw.get(f"/v1/conversations/{conversation}").json()["agent_id"]
    return Thread(raw, agent, conversation)


@pytest.mark.promise("P4", "P6", "P8")
def test_a_page_without_a_framework_shows_a_whole_answer_over_a_cut_and_a_reload(
    page: Page, relay: Relay, raw: httpx.Client
) -> None:
    assert page.act("#empty", "isVisible")
    assert_accessible(page)
    ask(page, ENDLESS)
    wait_for_words(page, 10)
    relay.cut()
    wait_for_words(page, 30)
    page.reload()
    wait_for_words(page, 50)
    assert not page.act("#empty", "isVisible")
    thread = conversation_of(page, raw)
    thread.post("cancel")
    wait_for_status(page, "Stopped.")
    whole = [f"You: {ENDLESS}", f"Answer: {thread.text()}"]
    assert listed(page) == whole
    page.reload()
    page.wait_until("() => document.querySelectorAll('#messages li').length === 2")
    assert listed(page) == whole
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
    assert listed(page) == ["You: first", "Answer: first", "You: second", "Answer: second"]
    thread = conversation_of(page, raw)
    assert statuses_of(thread) == ["completed"] * 2


@pytest.mark.promise("P4", "P6")
def test_a_page_says_that_it_has_no_connection_and_tries_again_when_it_is_asked_to(
    page: Page, relay: Relay, raw: httpx.Client
) -> None:
    ask(page, ENDLESS)
    wait_for_words(page, 3)
    server, relay.target = relay.target, "/nobody/listens/here"
    relay.cut()
    page.act("#retry", "waitFor")
    assert "No connection" in page.act("#status", "textContent")
    relay.target = server
    # The page may have reconnected by itself, and hidden the button.
    page.evaluate("() => document.querySelector('#retry').click()")
    wait_for_status(page, "Answering…")
    assert not page.act("#retry", "isVisible")
    page.act("#stop", "click")
    wait_for_status(page, "Stopped.")
    assert listed(page)[1] == f"Answer: {conversation_of(page, raw).text()}"


def test_a_page_with_an_unknown_conversation_says_so(page: Page) -> None:
    unknown = "conv-00000000-0000-4000-8000-000000000000"
    page.goto(page.evaluate("() => location.href") + f"?conversation={unknown}")
    page.wait_until("() => document.querySelector('#status').textContent.includes('not found')")


def test_the_stop_button_ends_the_run_and_keeps_the_beginning_of_the_answer(
    page: Page, raw: httpx.Client
) -> None:
    ask(page, ENDLESS)
    wait_for_words(page, 10)
    page.act("#stop", "click")
    wait_for_status(page, "Stopped.")
    thread = conversation_of(page, raw)
    assert statuses_of(thread) == ["cancelled"]
    assert listed(page)[1] == f"Answer: {thread.text()}"
    assert page.act("#send", "isVisible")


def test_a_failed_answer_is_reported_and_html_of_a_model_is_shown_as_text(page: Page) -> None:
    ask(page, "[fail=2][chunks=5]")
    wait_for_status(page, "The answer failed.")
    assert listed(page)[-1].startswith("Answer: The answer failed: The scripted model failed")
    html = "<img src=x onerror='document.title = 1'> & <b>bold</b>"
    ask(page, html)
    wait_for_status(page, "The answer is complete.")
    assert listed(page)[-1] == f"Answer: {html}"
    assert page.evaluate("() => document.images.length") == 0


def test_a_question_waits_in_the_field_while_another_tab_gets_its_answer(
    browser: Browser, page: Page, raw: httpx.Client
) -> None:
    ask(page, ENDLESS)
    wait_for_words(page, 3)
    thread = conversation_of(page, raw)
    with browser.page(page.evaluate("() => location.href"), beside=page) as other:
        wait_for_words(other, 3)
        page.act("#stop", "click")
        wait_for_status(other, "Stopped.")
        ask(page, ENDLESS)
        page.wait_until("() => document.querySelectorAll('.assistant').length === 2")
        ask(other, "mine")
        other.wait_until("() => document.querySelectorAll('.assistant').length === 2")
        assert other.act("#text", "inputValue") == "mine"
        other.act("#stop", "click")
        wait_for_status(other, "Stopped.")
        wait_for_status(page, "Stopped.")
        assert listed(other) == listed(page)
    assert statuses_of(thread) == ["cancelled"] * 2


@pytest.fixture(scope="module")
def react(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PageServer, Relay]]:
    """The React program, with the server behind the relay."""
    folder = tmp_path_factory.mktemp("react")
    with Relay(server.address) as relay, PageServer(build(folder, relay.url)) as pages:
        yield pages, relay


def wait_for_answer(page: Page, words: int) -> None:
    code = "document.querySelector('.agent:last-child')?.textContent.split(' ').length"
    page.wait_until(f"(least) => {code} > least", words)


def wait_for_role_status(page: Page, status: str) -> None:
    code = "document.querySelector('[role=status]')?.textContent"
    page.wait_until(f"(said) => {code} === said", status)


@pytest.mark.promise("P4", "P6", "P8")
def test_a_react_hook_shows_a_whole_answer_over_a_cut_and_a_reload(
    browser: Browser, react: tuple[PageServer, Relay], raw: httpx.Client
) -> None:
    pages, relay = react
    thread = Threads(raw).conversation()
    with browser.page(f"{pages.url}/?conversation={thread.conversation_id}") as page:
        page.act("text=No messages yet", "waitFor")
        assert_accessible(page)
        ask(page, ENDLESS)
        wait_for_answer(page, 10)
        relay.cut()
        wait_for_answer(page, 30)
        page.reload()
        wait_for_answer(page, 50)
        thread.post("cancel")
        wait_for_role_status(page, "Stopped.")
        whole = [f"You: {ENDLESS}", f"Answer: {thread.text()}"]
        assert listed(page) == whole
        page.reload()
        wait_for_answer(page, 50)
        assert listed(page) == whole
        ask(page, ENDLESS)
        page.act("text=Stop", "click")
        wait_for_role_status(page, "Stopped.")
        assert statuses_of(thread) == ["cancelled", "cancelled"]
        ask(page, "[fail=1]")
        page.act(".error", "waitFor")
        assert listed(page)[-1].startswith("The answer failed: The scripted model failed")
        assert not [line for line in page.log if line.startswith("pageerror")]


@pytest.mark.promise("P4", "P8")
def test_a_react_hook_leaves_its_stream_when_it_is_unmounted_and_finds_the_answer_again(
    browser: Browser, react: tuple[PageServer, Relay], raw: httpx.Client
) -> None:
    pages, relay = react
    thread = Threads(raw).conversation()
    mount = "(isMounted) => mount(isMounted)"
    with browser.page(f"{pages.url}/mounting?conversation={thread.conversation_id}") as page:
        page.evaluate(mount, True)
        page.wait_until("() => streams.opened > 0 && streams.open === 0")
        ask(page, ENDLESS)
        wait_for_answer(page, 10)
        page.evaluate(mount, False)
        page.wait_until("() => streams.open === 0")
        page.evaluate(mount, True)
        wait_for_answer(page, 20)
        page.evaluate("() => { mount(false); mount(true); }")
        wait_for_answer(page, 30)
        thread.post("cancel")
        wait_for_role_status(page, "Stopped.")
        assert listed(page) == [f"You: {ENDLESS}", f"Answer: {thread.text()}"]
        relay.swallow()
        ask(page, "later")
        page.wait_until("() => document.querySelectorAll('li').length === 3")
        page.evaluate(mount, False)
        page.wait_until("() => document.querySelectorAll('li').length === 0")
        relay.mend()
        page.evaluate(mount, True)
        page.wait_until("() => document.querySelectorAll('li').length === 4")
        wait_for_role_status(page, "The answer has ended.")
        assert listed(page)[2:] == ["You: later", "Answer: later"]
        assert statuses_of(thread) == ["cancelled", "completed"]
        assert not [line for line in page.log if line.startswith("pageerror")]
