"""The recipe for WebSockets: resumed after cuts and reloads, closed with the right codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from reattach.testing.programs.relay import Relay
from tests.browser.pages import assert_accessible
from tests.support.application_server import EXAMPLES, program_served
from tests.support.browser import Browser
from tests.support.threads import WAIT_SECONDS

QUESTION = " ".join(f"w{number}" for number in range(10_000))
"""Its answer goes on until it is stopped."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = str(tmp_path_factory.mktemp("data"))
    with program_served(EXAMPLES / "websocket/app.py", EXAMPLE_DATA_DIR=data_dir) as url:
        yield url


def cookie_of(url: str, name: str) -> dict[str, str]:
    signed_in = httpx.post(f"{url}/sign-in", json={"name": name}, timeout=WAIT_SECONDS)
    return {"cookie": signed_in.headers["set-cookie"].partition(";")[0]}


@contextmanager
def opened(url: str, headers: dict[str, str], **wanted: Any) -> Iterator[ClientConnection]:
    address = url.replace("http", "ws") + "/answers"
    with connect(address, additional_headers=headers, proxy=None) as socket:
        with suppress(ConnectionClosed):  # It may be refused already.
            socket.send(json.dumps(wanted))
        yield socket


def events_and_code(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return the rest of the events, and the code with which the connection was closed."""
    events = []
    try:
        while True:
            events.append(json.loads(socket.recv(WAIT_SECONDS)))
    except ConnectionClosed as closed:
        return events, closed.rcvd.code if closed.rcvd else 1006


@pytest.mark.promise("P4", "P8")
def test_an_answer_over_a_websocket_is_resumed_after_the_last_event_and_stopped(url: str) -> None:
    ada = cookie_of(url, "ada")
    with opened(url, ada, text=QUESTION, otid="question-1") as socket:
        events = [json.loads(socket.recv(WAIT_SECONDS)) for _ in range(5)]
    wanted = {"run_id": events[-1]["run_id"], "after": events[-1]["seq_id"]}
    with opened(url, ada, **wanted) as socket:
        events += [json.loads(socket.recv(WAIT_SECONDS)) for _ in range(5)]
        socket.send('{"stop": true}')
        rest, code = events_and_code(socket)
    events += rest
    assert code == 1000
    assert [event["seq_id"] for event in events] == list(range(1, len(events) + 1))
    assert (
        next(e for e in events if e["message_type"] == "stop_reason")["stop_reason"] == "cancelled"
    )
    with opened(url, ada, text=QUESTION, otid="question-1") as socket:
        assert events_and_code(socket) == (events, 1000)


@pytest.mark.promise("P11")
def test_a_websocket_that_is_refused_is_closed_with_the_code_of_the_reason(url: str) -> None:
    ada, grace = cookie_of(url, "ada"), cookie_of(url, "grace")
    with opened(url, ada, text="short", otid="question-2") as socket:
        events, code = events_and_code(socket)
    assert code == 1000
    run_id = events[0]["run_id"]
    refused = [
        (4401, {}, {"run_id": run_id}),
        (4401, ada | {"origin": "https://elsewhere.example"}, {"run_id": run_id}),
        (4404, grace, {"run_id": run_id}),
        (4404, ada, {"run_id": "run-00000000-0000-4000-8000-000000000000"}),
        (4409, ada, {"text": "another question", "otid": "question-2"}),
        (4400, ada, {"text": "both", "run_id": run_id}),
        (4400, ada, {}),
    ]
    for expected, headers, wanted in refused:
        with opened(url, headers, **wanted) as socket:
            assert events_and_code(socket) == ([], expected), wanted


@pytest.mark.promise("P4", "P8")
def test_a_page_with_a_websocket_shows_a_whole_answer_over_a_cut_and_a_reload(
    browser: Browser, url: str
) -> None:
    host, port = url.removeprefix("http://").split(":")
    words = "document.querySelector('#answer').textContent.split(' ').length"
    with Relay((host, int(port))) as relay, browser.page(relay.url) as page:
        assert_accessible(page)
        page.act("#name", "fill", "katherine")
        page.act("#text", "fill", QUESTION)
        page.act("#text", "press", "Enter")
        page.wait_until(f"() => {words} > 10")
        relay.cut()
        page.wait_until(f"() => {words} > 30")
        page.reload()
        page.wait_until(f"() => {words} > 50")
        page.act("#stop", "click")
        page.wait_until("() => document.querySelector('#status').textContent.includes('cancelled')")
        shown = page.evaluate("() => document.querySelector('#answer').textContent")
        assert QUESTION.upper().startswith(shown.strip())
        assert not [line for line in page.log if line.startswith("pageerror")]
