"""The chat of the server's page: answers over a cut line, reloads, tabs, approvals, images."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.browser.page_views import (
    answers,
    assert_usable_by_everyone,
    chat_of,
    say,
    texts,
    view,
    wait_for_end,
    wait_for_text,
)
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser
from tests.support.threads import Thread, Threads, raw_client

LONG = "[chunks=240][rate=40]"
"""An answer of six seconds."""
LONGER = "[chunks=250][rate=25]"
LINKS = "[link](https://example.org/a_(b)) and [js](javascript:alert(1))."
IS_GONE = "async (path) => (await fetch(path)).status === 410"
WHOLE = " ".join(f"t{at}" for at in range(240))
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tools = "tests.support.tool_functions:deploy,tests.support.tool_functions:add"
    with scripted_server(tmp_path_factory.mktemp("page"), REATTACH_TOOLS=tools) as server:
        yield server


@pytest.fixture(scope="module")
def raw(served: ServerProcess) -> Iterator[httpx.Client]:
    with raw_client(served.url) as raw:
        yield raw


@pytest.fixture
def thread(raw: httpx.Client) -> Thread:
    return Threads(raw).conversation()


def with_tools(thread: Thread, *names: str) -> None:
    """Give the agent tools of the server."""
    offered = {one["name"]: one["id"] for one in thread.get("/v1/tools/", limit="100")}
    for name in names:
        path = f"/v1/agents/{thread.agent_id}/tools/attach/{offered[name]}"
        assert thread.raw.patch(path).status_code == 200


def test_an_answer_is_written_while_it_comes_and_is_the_same_after_a_reload(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, "[think=3] # Title\n\n- **bold** `code`\n\n" + LINKS)
        wait_for_end(page)
        kinds = "() => [...document.querySelectorAll('.block')].map((one) => one.classList[1])"
        assert page.evaluate(kinds) == ["user", "reasoning", "answer"]
        [answer] = texts(page, ".answer")
        assert texts(page, ".answer h3") == ["Title"]
        assert texts(page, ".answer li strong") == ["bold"]
        assert texts(page, ".answer li code") == ["code"]
        hrefs = "() => [...document.querySelectorAll('.answer a')].map((one) => one.href)"
        assert page.evaluate(hrefs) == ["https://example.org/a_(b)", ""]
        assert texts(page, ".answer p")[-1] == "link and js."
        assert texts(page, ".reasoning summary")[0].startswith("Reasoning")
        assert texts(page, ".reasoning .markdown") == []  # Folded away.
        page.act(".reasoning summary", "click")
        wait_for_text(page, ".reasoning .markdown", "r0 r1 r2")
        page.reload()
        wait_for_text(page, ".answer h3", "Title")
        assert page.evaluate(kinds) == ["user", "reasoning", "answer"]
        assert texts(page, ".answer") == [answer]
        assert_usable_by_everyone(page)


def test_a_cut_line_shows_what_is_missed_and_the_answer_is_whole_after_it(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, LONG)
        wait_for_text(page, ".answer", "t10")
        page.act("button:has-text('Cut now')", "click")
        wait_for_text(page, ".line .missing", "missing")
        wait_for_text(page, ".cut", "missing")
        [cut] = texts(page, ".cut")
        assert re.fullmatch(r"cut at seq \d+ · \d\.\d s · \d+ events? missing", cut)
        wait_for_text(page, ".cut", "reattached")
        wait_for_text(page, ".cut", ", ")
        [cut] = texts(page, ".cut")
        # The mark is where the answer was cut, and the answer goes on behind it.
        behind = "document.querySelector('.answer .cut').parentElement.nextSibling?.textContent"
        page.wait_until(f"() => {behind}")
        found = re.fullmatch(r"cut at seq \d+ · reattached after \d\.\d s, (\d+) events?", cut)
        assert found, cut
        assert int(found[1]) > 0
        wait_for_end(page)
        assert answers(page) == [WHOLE]
        assert texts(page, "[role=status].unseen")[0].startswith("Answer finished, 243 events")


def test_an_answer_is_whole_though_every_connection_is_dropped(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        page.act("[aria-label='Dropped connections']", "selectOption", "1")
        say(page, LONG)
        wait_for_end(page)
        assert answers(page) == [WHOLE]
        assert len(texts(page, ".cut.over")) > 0


def test_a_reload_in_mid_answer_goes_on_and_a_second_tab_follows_too(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, LONGER)
        wait_for_text(page, ".answer", "t5")
        with view(browser, served.url, chat_of(thread), beside=page) as other:
            wait_for_text(other, ".following", "live")
            page.reload()
            for one in (page, other):
                wait_for_end(one)
                assert answers(one) == [" ".join(f"t{at}" for at in range(250))]
                assert texts(one, ".user") == [LONGER]
            # A tab that was open before the message sees the answer, too.
            page.bring_to_front()
            say(page, "[chunks=40][rate=20]")
            wait_for_text(page, ".answer", "t39")
            other.bring_to_front()
            other.wait_until("() => document.querySelectorAll('.answer').length === 2")
            wait_for_end(other)
            assert texts(other, ".answer")[1] == " ".join(f"t{at}" for at in range(40))
    assert len(thread.runs()) == 2


def test_a_killed_server_is_a_pause_after_which_the_answer_is_whole(
    browser: Browser, tmp_path: Path
) -> None:
    with scripted_server(tmp_path) as server, raw_client(server.url) as raw:
        thread = Threads(raw).conversation()
        with browser.page(f"{server.url}/#{chat_of(thread)}") as page:
            say(page, LONG)
            wait_for_text(page, ".answer", "t10")
            server.kill()
            wait_for_text(page, ".lost-line", "No connection")  # After three seconds.
            wait_for_text(page, ".lost-line", "continued when the server is back")
            server.start()
            page.act(".lost-line button", "click")
            wait_for_end(page)
            assert answers(page) == [WHOLE]
            assert re.fullmatch(
                r"connection lost at seq \d+ · reattached after \d+\.\d s, \d+ events?",
                texts(page, ".cut")[0],
            )
            assert texts(page, ".lost-line") == []
            assert not [line for line in page.log if line.startswith("pageerror")]


def test_a_run_whose_events_are_gone_shows_its_messages_and_says_why(
    browser: Browser, tmp_path: Path
) -> None:
    settings = {"REATTACH_RETENTION_SECONDS": "0.5"}
    with scripted_server(tmp_path, **settings) as server, raw_client(server.url) as raw:
        thread = Threads(raw).conversation()
        body = {"messages": [thread.message("hello")], "background": True}
        assert thread.post("messages", body).status_code == 200
        [run] = thread.runs()
        issued = raw.post("/v1/tokens", json={"scope": ["read"], "run_id": run["id"]})
        with browser.page(server.url) as page:
            page.wait_until(IS_GONE, f"/v1/runs/{run['id']}/stream")
            page.goto(f"{server.url}/?again#token={issued.json()['token']}")
            wait_for_text(page, ".note", "The events are past retention; the messages are below.")
            wait_for_text(page, ".answer", "hello")
            assert not [line for line in page.log if line.startswith("pageerror")]


def test_a_call_that_waits_runs_when_it_is_approved_and_not_when_it_is_denied(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with_tools(thread, "deploy")
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, '[approve=deploy][arguments={"n": 7}]')
        wait_for_text(page, ".tool .badge", "waits for you")
        assert texts(page, ".arguments") == ['{"n": 7}']
        assert_usable_by_everyone(page)
        page.reload()  # It waits for as long as it takes.
        page.act("button:has-text('Approve')", "click")
        wait_for_text(page, ".tool .badge", "returned")
        wait_for_end(page)
        assert "deployed 7" in texts(page, ".answer")[-1]
        say(page, '[approve=deploy][arguments={"n": 8}]')
        page.act("button:has-text('Deny')", "click")
        wait_for_end(page)
        assert "deployed 8" not in texts(page, ".answer")[-1]


def test_calls_that_wait_together_are_decided_one_by_one_and_answered_at_once(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with_tools(thread, "deploy", "add")
    path = f"/v1/agents/{thread.agent_id}/tools/approval/add"
    assert thread.raw.patch(path, json={"requires_approval": True}).status_code == 200
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, '[approve=deploy,add][arguments={"n": 7}]')
        page.act("[aria-label='Deny add']", "click")
        wait_for_text(page, ".decide", "denied; 2 calls decide together")
        page.act("[aria-label='Approve deploy']", "click")
        wait_for_text(page, ".tool .badge", "returned")
        wait_for_end(page)
        assert texts(page, ".tool .badge") == ["returned", "denied"]
        page.reload()
        wait_for_text(page, ".answer", "deployed 7")
        assert texts(page, ".tool .badge") == ["returned", "denied"]


def test_stop_ends_the_answer_and_says_so(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        say(page, "[chunks=10000][rate=50]")
        wait_for_text(page, ".answer", "t5")
        page.act(".stop", "click")
        wait_for_text(page, ".note", "Stopped.")
        wait_for_end(page)
        assert thread.runs()[0]["stop_reason"] == "cancelled"
        say(page, "hello")
        wait_for_text(page, ".answer", "hello")


def test_an_image_that_a_model_writes_is_a_link_and_one_that_is_attached_is_shown(
    browser: Browser, served: ServerProcess, thread: Thread, tmp_path: Path
) -> None:
    picture = tmp_path / "pixel.png"
    picture.write_bytes(PIXEL)
    shown = "() => document.querySelector('.user .picture')?.naturalWidth === 1"
    with view(browser, served.url, chat_of(thread)) as page:
        page.act("input[type=file]", "setInputFiles", str(picture))
        say(page, "![map](/v1/health/?by-model) ![far](https://far.example/a.png) <img src=/v1/x>")
        wait_for_end(page)
        page.wait_until(shown)
        links = page.evaluate(
            "() => [...document.querySelectorAll('.answer a')].map((one) => one.textContent)"
        )
        assert links == ["map", "far"]
        assert page.evaluate("() => document.querySelectorAll('.answer img').length") == 0
        assert "<img src=/v1/x>" in texts(page, ".answer")[0]
        page.reload()
        page.wait_until(shown)
        assert not [one for one in page.requests if re.search(r"by-model|far\.example|v1/x", one)]
        assert all(one.split(" ")[1].startswith((served.url, "blob:")) for one in page.requests)


def test_agents_and_conversations_are_made_renamed_and_deleted(
    browser: Browser, tmp_path: Path
) -> None:
    with scripted_server(tmp_path) as server, view(browser, server.url) as page:
        wait_for_text(page, "h2", "No agent yet")
        for width in (390, 1280):
            page.resize(width, 780)
            middle = """() => {
                const box = document.querySelector('.empty').getBoundingClientRect();
                return [box.left, innerWidth - box.right];
            }"""
            left, right = page.evaluate(middle)
            assert left >= 0
            assert abs(left - right) < 2
            command = (
                "() => document.querySelector('.empty .command').getBoundingClientRect().right"
            )
            assert page.evaluate(command) <= width
        assert "/v1/agents/" in texts(page, ".command pre")[0]
        assert_usable_by_everyone(page)
        page.act("button:has-text('Make an agent')", "click")
        page.act(".dialog input", "fill", "Ada")
        page.act(".dialog button[type=submit]", "click")
        page.act(".sidebar .new", "click")
        say(page, "hello there")
        wait_for_text(page, ".answer", "hello there")
        wait_for_text(page, ".conversations", "hello there")
        page.act(".conversations li.current", "hover")
        page.act("[aria-label='Rename hello there']", "click")
        page.act(".dialog input", "fill", "Greetings")
        page.act(".dialog button[type=submit]", "click")
        wait_for_text(page, ".conversations", "Greetings")
        page.act(".conversations li.current", "hover")
        page.act("[aria-label='Delete Greetings']", "click")
        page.wait_until("() => !location.hash.includes('conv-')")
        assert page.evaluate("() => document.querySelectorAll('.conversations li').length") == 1
        page.act(".conversations a", "click")
        wait_for_text(page, ".head .title", "Default conversation")
        say(page, "in the default conversation")
        wait_for_text(page, ".answer", "in the default conversation")
        page.act("[aria-label='Change the agent']", "click")
        page.act(".dialog .danger", "click")
        wait_for_text(page, "h2", "No agent yet")
        assert texts(page, ".toast.bad, .dialog") == []


def test_a_conversation_without_a_name_is_called_as_it_begins(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    sent = thread.post("messages", {"messages": [thread.message("A day on Sark")]})
    assert sent.status_code == 200
    with view(browser, served.url, chat_of(thread)) as page:
        wait_for_text(page, ".conversations", "A day on Sark")
        wait_for_text(page, ".head .title", "A day on Sark")


def test_on_a_phone_everything_fits_and_the_tabs_are_at_the_bottom(
    browser: Browser, served: ServerProcess, thread: Thread
) -> None:
    with view(browser, served.url, chat_of(thread)) as page:
        page.resize(375, 700)
        say(page, "a_long_word_" * 30)
        wait_for_end(page)
        wide = "() => document.scrollingElement.scrollWidth > innerWidth"
        assert page.evaluate(wide) is False
        at = "() => document.querySelector('.tabs').getBoundingClientRect().bottom - innerHeight"
        assert abs(page.evaluate(at)) < 1
        assert_usable_by_everyone(page)
        page.act(".menu-toggle", "click")
        page.act(".conversations a >> nth=0", "click")
