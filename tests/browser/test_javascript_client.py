"""The JavaScript client in real tabs: cuts, reloads, sleep, restarts, one connection for all."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser, Page, PageServer
from tests.support.javascript_client import PACKAGE, events_of, require_client
from tests.support.node_driver import Json
from tests.support.threads import (
    Thread,
    Threads,
    assert_one_whole_run,
    raw_client,
)

PAGE = """<!doctype html>
<script type="module">
  import { connect } from "/client.js";
  // The page keeps its items over a reload, as one that shows them would.
  const items = JSON.parse(sessionStorage.items ?? "[]");
  const seen = { items, states: [], requests: 0, open: 0, state: "idle" };
  const waiting = [];
  const changed = () => waiting.splice(0).forEach((look) => look());
  window.until = (count) =>
    new Promise((resolve) => {
      const look = () => {
        const isOver = ["ended", "failed", "closed"].includes(seen.state);
        if (isOver || items.length >= count) resolve(seen);
        else waiting.push(look);
      };
      look();
    });
  const counting = async (url, init) => {
    seen.requests += 1;
    seen.open += 1;
    init.signal.addEventListener("abort", () => (seen.open -= 1));
    return fetch(url, init);
  };
  window.begin = (options, method, args, more) => {
    const client = connect({ storage: sessionStorage, fetch: counting, ...options });
    const onState = (state) => {
      seen.state = state.name;
      seen.states.push(state.name);
      seen.error = state.error && String(state.error);
      changed();
    };
    const stream = client[method](...args, { ...more, onState });
    (async () => {
      for await (const item of stream) {
        items.push(item);
        sessionStorage.items = JSON.stringify(items);
        changed();
      }
    })().catch((error) => (seen.failure = String(error)));
  };
</script>"""
QUICK: Json = {"backoff": {"firstMs": 10, "lastMs": 100}, "keepaliveMs": 1000}

MORE_THAN_ALL = 10**6


class Tab:
    """A page that runs the client."""

    def __init__(self, page: Page, url: str, thread: Thread, **options: Any) -> None:
        self.page = page
        self._thread = thread
        self._options = {"url": url, **QUICK, **options}

    def send(self, text: str) -> None:
        more = {"otid": self._thread.otid, "agent": self._thread.agent_id}
        self._begin("send", [self._thread.path_id, text], more)

    def follow(self, **options: Any) -> None:
        target = {"conversation": self._thread.path_id, "agent": self._thread.agent_id}
        self._begin("follow", [target], options)

    def wait(self, count: int) -> Json:
        """Wait until the page has this many items, or its stream is over."""
        seen: Json = self.page.evaluate("(count) => window.until(count)", count)
        return seen

    def finish(self) -> Json:
        """Wait until the stream has ended."""
        seen = self.wait(MORE_THAN_ALL)
        assert seen["state"] == "ended", seen
        assert not [line for line in self.page.log if line.startswith("pageerror")]
        return seen

    def _begin(self, method: str, args: list[Any], more: Json) -> None:
        argument = [self._options, method, args, more]
        self.page.evaluate("(given) => window.begin(...given)", argument)


def assert_whole(items: list[Json], thread: Thread) -> None:
    """Assert that items are the events of the conversation's only run, each once."""
    [run] = thread.runs()
    replay = thread.replay(run["id"])
    assert_one_whole_run(replay)
    assert items == events_of(replay)


@pytest.fixture(scope="module")
def pages() -> Iterator[PageServer]:
    require_client()
    client = (PACKAGE / "dist/index.js").read_bytes()
    with PageServer({"/": PAGE, "/client.js": client}) as pages:
        yield pages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def relay(server: ServerProcess) -> Iterator[Relay]:
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture
def conversation(server: ServerProcess) -> Iterator[Thread]:
    with raw_client(server.url) as raw:
        yield Threads(raw).conversation()


@pytest.mark.promise("P4", "P6", "P9")
def test_a_page_whose_connections_are_cut_at_random_bytes_gets_each_event_once(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    dice = random.Random(3)
    with browser.page(pages.url) as page:
        tab = Tab(page, relay.url, conversation)
        tab.send("[chunks=200][unicode][rate=200]")
        for count in range(20, 200, 20):
            relay.cut_after(dice.randrange(3000))
            tab.wait(count)
        seen = tab.finish()
    assert_whole(seen["items"], conversation)
    assert seen["states"].count("waiting") >= 3


@pytest.mark.promise("P4", "P6", "P8")
def test_a_page_that_is_reloaded_in_mid_answer_gets_each_event_once(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    with browser.page(pages.url) as page:
        tab = Tab(page, relay.url, conversation)
        tab.send("[chunks=100][rate=100]")
        for count in (10, 30, 50):
            assert tab.wait(count)["state"] != "ended"
            page.reload()
            tab.follow()
        seen = tab.finish()
    assert_whole(seen["items"], conversation)


@pytest.mark.promise("P4", "P12")
def test_a_laptop_that_sleeps_in_mid_answer_gets_each_event_once(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    with browser.page(pages.url) as page:
        tab = Tab(page, relay.url, conversation)
        tab.send("[chunks=150][rate=100]")
        tab.wait(10)
        with browser.asleep():
            time.sleep(0.3)  # It sleeps for a while, whose length does not matter.
        tab.wait(60)
        with browser.asleep():
            relay.cut()
        seen = tab.finish()
    assert_whole(seen["items"], conversation)


@pytest.mark.promise("P7", "P19")
def test_an_answer_goes_on_in_a_page_when_the_server_is_killed_and_started_again(
    browser: Browser, pages: PageServer, tmp_path: Path
) -> None:
    with (
        scripted_server(tmp_path) as server,
        raw_client(server.url) as raw,
        browser.page(pages.url) as page,
    ):
        thread = Threads(raw).conversation()
        tab = Tab(page, server.url, thread)
        tab.send("[chunks=60][rate=60]")
        tab.wait(10)
        server.kill()
        server.start()
        assert_whole(tab.finish()["items"], thread)


@pytest.mark.promise("P4", "P20")
def test_a_reloaded_page_shows_the_messages_so_far_and_then_each_later_event_once(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    with browser.page(pages.url) as page:
        tab = Tab(page, relay.url, conversation)
        tab.send("[chunks=300][rate=100]")
        tab.wait(30)
        page.reload()
        tab.follow(snapshot=True)
        items = tab.finish()["items"]
    reloaded = [item["message_type"] for item in items].index("snapshot")
    snapshot, *events = items[reloaded:]
    [run] = conversation.runs()
    replay = events_of(conversation.replay(run["id"]))
    assert 30 <= snapshot["seq"] < len(replay)
    assert events == replay[snapshot["seq"] :]
    [said] = [one for one in snapshot["messages"] if one["message_type"] == "assistant_message"]
    rest = [one["content"] for one in events if one["message_type"] == "assistant_message"]
    assert said["content"] + "".join(rest) == conversation.text()


@pytest.mark.promise("P4", "P6", "P8")
def test_three_tabs_share_one_connection_over_sleep_and_the_end_of_the_leading_tab(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    with ExitStack() as leading, ExitStack() as others:
        first = leading.enter_context(browser.page(pages.url))
        tabs = [Tab(first, relay.url, conversation, share="tabs")]
        for _ in range(2):
            page = others.enter_context(browser.page(pages.url, beside=first))
            tabs.append(Tab(page, relay.url, conversation, share="tabs"))
        tabs[0].send("[chunks=300][rate=60]")
        tabs[0].wait(10)
        for tab in tabs[1:]:
            tab.follow()
        for tab in tabs:
            seen = tab.wait(30)
            assert seen["open"] == (tab is tabs[0]), seen["states"]
        with browser.asleep():
            relay.cut()
        for tab in tabs:
            tab.wait(100)
        leading.close()
        for tab in tabs[1:]:
            assert_whole(tab.finish()["items"], conversation)


@pytest.mark.promise("P4")
def test_a_leading_tab_that_is_reloaded_and_its_follower_get_each_event_once(
    browser: Browser, pages: PageServer, relay: Relay, conversation: Thread
) -> None:
    with browser.page(pages.url) as one, browser.page(pages.url, beside=one) as other:
        tabs = [Tab(page, relay.url, conversation, share="tabs") for page in (one, other)]
        tabs[0].send("[chunks=150][rate=100]")
        tabs[0].wait(10)
        tabs[1].follow()
        tabs[1].wait(30)
        one.reload()
        tabs[0].follow()
        for tab in tabs:
            assert_whole(tab.finish()["items"], conversation)
