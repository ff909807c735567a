"""The browser's own ``EventSource`` on the GET streams, over connections that break."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.browser import Browser, Page, PageServer
from tests.support.threads import WAIT_SECONDS, Threads, raw_client

# Collects what a page gets until the browser gives up reconnecting.
FOLLOW = """(url) => {
  const seen = { events: [], opens: 0, errors: 0, state: -1 };
  window.seen = seen;
  const source = new EventSource(url);
  const take = (event) => seen.events.push([event.type, event.lastEventId, event.data]);
  source.onopen = () => seen.opens++;
  source.onmessage = take;
  source.addEventListener("done", take);
  source.addEventListener("ping", take);
  source.onerror = (event) => {
    if (event.data === undefined) seen.errors++; else take(event);
    seen.state = source.readyState;
  };
  window.source = source;
}"""
UNTIL = """async (condition) => {
  const holds = new Function("seen", `return ${condition}`);
  while (!holds(window.seen)) await new Promise((resolve) => setTimeout(resolve, 10));
  return window.seen;
}"""
UNTIL_SHOWN = """async (length) => {
  const answer = document.getElementById("answer");
  while (answer.textContent.length < length) await new Promise((go) => setTimeout(go, 10));
  return answer.textContent;
}"""
CLOSED = "seen.state === 2"
DOCS = Path(__file__).parents[2] / "docs" / "browser.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"),
        arguments=["--scripted", "--log-level", "warning"],
        environment={"REATTACH_PING_INTERVAL_SECONDS": "0.2"},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def threads(server: ServerProcess) -> Iterator[Threads]:
    with raw_client(server.url) as raw:
        yield Threads(raw)


@pytest.fixture(scope="module")
def page_server() -> Iterator[PageServer]:
    """Pages of this machine, of another origin than the server's."""
    with PageServer({"/": "<p>page</p>"}) as pages:
        yield pages


def sent(threads: Threads, text: str) -> tuple[str, str]:
    """Send in the background; the conversation and the run."""
    thread = threads.conversation()
    body = {"messages": [{"role": "user", "content": text}], "background": True}
    path = f"/v1/conversations/{thread.path_id}/messages"
    with threads.raw.stream("POST", path, json={**body, "stream_tokens": True}) as answer:
        return thread.path_id, answer.headers["x-run-id"]


def replay(raw: httpx.Client, run: str) -> list[str]:
    """The data of each frame of the run, ``[DONE]`` at the end; waits for the end."""
    body = raw.post(f"/v1/runs/{run}/stream", json={"include_pings": False}).text
    return re.findall(r"^data: (.*)$", body, re.MULTILINE)


def address_of(threads: Threads) -> tuple[str, int]:
    url = httpx.URL(threads.raw.base_url)
    assert url.port is not None
    return url.host, url.port


def wait_for_cut(relay: Relay) -> None:
    """Wait until the relay has cut its next connection."""
    before, deadline = relay.connections, time.monotonic() + WAIT_SECONDS
    while relay.connections == before or relay.open_connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def only_connection(server: ServerProcess) -> Iterator[None]:
    """Hold the only connection that a server allows."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        connection = HTTPConnection(*server.address, timeout=WAIT_SECONDS)
        with closing(connection):
            connection.request("GET", "/v1/health")
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                yield
                return
        assert time.monotonic() < deadline


def follow(page: Page, url: str, until: str = CLOSED) -> dict[str, Any]:
    page.evaluate(FOLLOW, url)
    seen: dict[str, Any] = page.evaluate(UNTIL, until)
    return seen


@pytest.mark.promise("S12", "S13", "P4", "P6")
@pytest.mark.parametrize("by_run", [True, False])
def test_a_page_gets_each_event_once_however_its_connection_is_cut(
    browser: Browser, threads: Threads, page_server: PageServer, by_run: bool
) -> None:
    randomly = random.Random(by_run)
    thread, run = sent(threads, "[chunks=120][rate=80][unicode][fail=119]")
    # The run may end before the page connects, so the conversation's active run may be none.
    named = f"/v1/conversations/{thread}/stream?run_id={run}"
    path = f"/v1/runs/{run}/stream" if by_run else named
    prefix = "" if by_run else f"{run}:"
    with Relay(address_of(threads)) as relay, browser.page(page_server.url) as page:
        relay.piece_bytes = 3 if by_run else 1000  # Also between the bytes of a character.
        relay.cut_after(5000)
        page.evaluate(FOLLOW, relay.url + path)
        for cut in range(1, 4):
            page.evaluate(UNTIL, f"seen.errors >= {cut} || {CLOSED}")
            relay.cut_after(randomly.randrange(1000, 6000))  # Not within the head; see below.
        seen = page.evaluate(UNTIL, CLOSED)
        assert not [line for line in page.log if "pageerror" in line]
    data = replay(threads.raw, run)
    assert [one for *_, one in seen["events"]] == data
    ids = [f"{prefix}{seq}" for seq in range(1, len(data))]
    assert [id_ for _, id_, _ in seen["events"]] == [*ids, f"{ids[-1]}-done"]
    kinds = [kind for kind, _, _ in seen["events"]]
    assert kinds == ["message"] * (len(data) - 3) + ["error", "message", "done"]
    assert seen["errors"] >= 4  # Three cuts, and after the end one more request, answered by 204.


@pytest.mark.promise("S12", "S13", "P4")
def test_the_page_of_the_docs_shows_the_answer_once_however_its_connection_is_cut(
    browser: Browser, threads: Threads
) -> None:
    """Chromium gives up for good if a connection ends within a head; the page opens it anew."""
    (html,) = re.findall(r"^```html\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    thread, run = sent(threads, "[chunks=100][rate=12]")
    with Relay(address_of(threads)) as relay:
        files = {"/": html.replace("http://localhost:8283", relay.url)}
        with (
            PageServer(files) as pages,
            browser.page(f"{pages.url}/?conversation={thread}") as page,
        ):
            page.evaluate(UNTIL_SHOWN, 10)
            for bytes_down in (100, 1, 2000):  # The first two are within a head.
                relay.cut()
                relay.cut_after(bytes_down)
                wait_for_cut(relay)
            answer = "".join(
                json.loads(data)["content"]
                for data in replay(threads.raw, run)
                if '"assistant_message"' in data
            )
            assert page.evaluate(UNTIL_SHOWN, len(answer)) == answer


@pytest.mark.promise("S15")
def test_a_page_sees_keepalives_as_events_if_it_asks_for_them(
    browser: Browser, server: ServerProcess, threads: Threads, page_server: PageServer
) -> None:
    _, run = sent(threads, "[hang=2]")
    with browser.page(page_server.url) as page:
        url = f"{server.url}/v1/runs/{run}/stream?pings=event"
        seen = follow(page, url, "seen.events.filter(([kind]) => kind === 'ping').length >= 2")
        pings = [event for event in seen["events"] if event[0] == "ping"]
        assert {id_ for _, id_, _ in pings} == {"3"}
        page.evaluate("() => window.source.close()")
    body = {"run_ids": [run]}
    agent = threads.raw.get(f"/v1/runs/{run}").json()["agent_id"]
    assert threads.raw.post(f"/v1/agents/{agent}/messages/cancel", json=body).status_code == 200


@pytest.mark.promise("S14", "P7", "P19")
def test_a_page_outlives_a_server_that_is_restarted(
    browser: Browser, page_server: PageServer, tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path, arguments=["--scripted", "--log-level", "warning"])
    with server, raw_client(server.url) as raw:
        threads = Threads(raw)
        _, run = sent(threads, "[chunks=60][rate=30]")
        with browser.page(page_server.url) as page:
            page.evaluate(FOLLOW, f"{server.url}/v1/runs/{run}/stream")
            page.evaluate(UNTIL, "seen.events.length >= 5")
            server.kill()
            page.evaluate(UNTIL, "seen.errors >= 1")
            server.start()
            seen = page.evaluate(UNTIL, CLOSED)
        data = replay(raw, run)
    assert [one for *_, one in seen["events"]] == data
    assert seen["events"][-1][:2] == ["done", f"{len(data) - 1}-done"]


@pytest.mark.promise("S14", "P12")
def test_a_page_comes_back_by_itself_when_the_server_had_no_connection_left(
    browser: Browser, page_server: PageServer, tmp_path: Path
) -> None:
    server = ServerProcess(
        tmp_path,
        arguments=["--scripted", "--log-level", "error"],
        environment={"REATTACH_MAX_CONNECTIONS_PER_ADDRESS": "1"},
    )
    with server, browser.page(page_server.url) as page:
        with raw_client(server.url) as raw:
            _, run = sent(Threads(raw), "[chunks=3]")
        with only_connection(server):
            page.evaluate(FOLLOW, f"{server.url}/v1/runs/{run}/stream")
            seen = page.evaluate(UNTIL, "seen.errors >= 2")
            assert (seen["state"], seen["events"]) == (0, [])  # CONNECTING
        seen = page.evaluate(UNTIL, CLOSED)
    assert seen["events"][-1][0] == "done"


@pytest.mark.promise("S17")
def test_the_browser_and_the_server_keep_pages_of_other_machines_out(
    browser: Browser, tmp_path: Path, threads: Threads, server: ServerProcess
) -> None:
    """A page that this machine serves under a name of another one."""
    _, run = sent(threads, "[chunks=1]")
    url = f"{server.url}/v1/runs/{run}/stream"
    with PageServer({"/": "<p>page</p>"}) as pages:
        foreign = f"http://evil.example:{pages.port}"
        with browser.page(pages.url) as own:
            assert follow(own, url)["opens"] >= 1
        with browser.page(foreign) as page:
            assert page.evaluate("() => location.origin") == foreign
            seen = follow(page, url)
            assert (seen["opens"], seen["events"]) == (0, [])
