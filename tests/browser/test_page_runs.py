"""The view Runs of the page: live rows, filters, cancelling, the keyboard, empty states."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.browser.page_views import (
    assert_usable_by_everyone,
    background_run,
    key_of,
    texts,
    view,
    wait_for_text,
)
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser
from tests.support.threads import Threads, raw_client

ENDLESS = "[chunks=100000][rate=20]"
ROW = "tbody tr[aria-rowindex]"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with scripted_server(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def raw(served: ServerProcess) -> Iterator[httpx.Client]:
    with raw_client(served.url) as raw:
        yield raw


@pytest.fixture(scope="module")
def threads(raw: httpx.Client) -> Threads:
    return Threads(raw)


def run_of(threads: Threads, text: str) -> str:
    return background_run(threads.conversation(), text)


def unique() -> str:
    """Return a word that only the runs of one test have in their texts."""
    return f"w{uuid.uuid4().hex[:10]}"


def cell(name: str, row: str = ROW) -> str:
    return f"{row} .col-{name}"


def test_a_server_without_runs_shows_a_command_that_sends_one(
    browser: Browser, tmp_path: Path
) -> None:
    with scripted_server(tmp_path) as server, raw_client(server.url) as raw:
        with view(browser, server.url, "runs") as page:
            for path in ("/v1/agents/", "/v1/conversations/default/messages"):
                wait_for_text(page, ".empty pre", path)
                [command] = texts(page, ".empty pre")
                words = shlex.split(command.replace("\\\n", " "))
                assert words[:2] == ["curl", "-N"]
                answer = raw.post(words[2], json=json.loads(words[words.index("--json") + 1]))
                assert answer.status_code == 200, answer.text
            wait_for_text(page, cell("run"), "Tell me of an island")
            wait_for_text(page, cell("status"), "completed")
        with browser.page(f"{server.url}/#runs") as page:
            page.wait_until("() => document.querySelector('.col-status')")
            server.kill()
            wait_for_text(page, ".stale", "Last news at")
            wait_for_text(page, ".stale", "unreachable")
            assert texts(page, cell("status")) == ["completed"]  # The rows stay.
            server.start()
            page.wait_until("() => !document.querySelector('.stale')")


def test_a_run_is_shown_with_its_figures_while_it_streams_until_it_is_cancelled(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    word = unique()
    run_of(threads, f"{ENDLESS} {word}")
    with view(browser, served.url, f"runs&query={word}") as page:
        wait_for_text(page, cell("status"), "running")
        shown = {"model": "scripted/echo", "rate": "/s", "first": "s", "attempts": "1"}
        for name, text in shown.items():
            wait_for_text(page, cell(name), text)
        events = "() => Number(document.querySelector('td.col-events').innerText)"
        before = page.evaluate(events)
        page.wait_until(f"(before) => ({events})() > before", before)
        page.act("button[title=Cancel]", "click")
        wait_for_text(page, cell("status"), "cancelled")
        assert texts(page, "button[title=Cancel]") == []


def test_filters_are_in_the_address_and_an_empty_result_offers_to_remove_them(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    word = unique()
    run_of(threads, f"[chunks=1] {word} good")
    run_of(threads, f"[fail=1] {word} bad")
    with view(browser, served.url, "runs") as page:
        page.act("input[type=search]", "fill", word)
        page.wait_until(f"() => document.querySelectorAll('{ROW}').length === 2")
        page.act("select[aria-label=Status]", "selectOption", "failed")
        page.wait_until(f"() => document.querySelectorAll('{ROW}').length === 1")
        assert "bad" in texts(page, cell("run"))[0]
        assert page.evaluate("() => location.hash") == f"#runs&query={word}&status=failed"
        page.reload()
        wait_for_text(page, cell("status"), "failed")
        assert len(texts(page, ROW)) == 1
        page.act("select[aria-label=Status]", "selectOption", "cancelled")
        wait_for_text(page, ".empty", "No run matches")
        page.act("button:has-text('Remove the filter')", "click")
        wait_for_text(page, cell("status"), "completed")


def test_several_runs_are_cancelled_together_after_a_question(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    word = unique()
    for _ in range(3):
        run_of(threads, f"{ENDLESS} {word}")
    with view(browser, served.url, f"runs&query={word}") as page:
        page.wait_until(f"() => document.querySelectorAll('{ROW}.active').length === 3")
        for at in (1, 2):
            page.act(f"{ROW}:nth-of-type({at}) input", "check")
        page.act("button:has-text('Cancel 2 runs')", "click")
        wait_for_text(page, "dialog h2", "Cancel 2 runs?")
        page.act("dialog button:has-text('Keep them')", "click")
        assert page.evaluate("() => document.querySelector('dialog')") is None
        page.act("button:has-text('Cancel 2 runs')", "click")
        page.act("dialog button.primary", "click")
        page.wait_until(f"() => document.querySelectorAll('{ROW}.active').length === 1")
        assert sorted(texts(page, cell("status"))) == ["cancelled", "cancelled", "running"]
        page.act("button[title=Cancel]", "click")
        page.wait_until(f"() => document.querySelectorAll('{ROW}.active').length === 0")


def test_the_keyboard_finds_a_run_and_opens_it(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    word = unique()
    runs = [run_of(threads, f"[chunks=1] {word}") for _ in range(3)]
    with view(browser, served.url, "runs") as page:
        page.wait_until(f"() => document.querySelector('{ROW}')")
        page.act("body", "press", "/")
        page.act(":focus", "pressSequentially", word)
        page.wait_until(f"() => document.querySelectorAll('{ROW}').length === 3")
        for key in ("ArrowDown", "ArrowDown", "End", "ArrowUp", "Enter"):
            page.act(":focus", "press", key)
        page.wait_until("(run) => location.hash.startsWith(`#inspector/${run}`)", runs[1])


def test_a_long_list_has_elements_only_for_the_rows_that_are_seen(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    word = unique()
    agent = threads.default_thread().agent_id
    first = background_run(threads.conversation(agent), f"[chunks=1] {word} first")
    for _ in range(130):
        background_run(threads.conversation(agent), f"[chunks=1] {word}")
    with view(browser, served.url, f"runs&query={word}") as page:
        wait_for_text(page, ".sums", "100+ in all")
        assert len(texts(page, ROW)) < 60
        scroll = (
            "() => { const box = document.querySelector('.virtual-table'); box.scrollTop = 1e6; }"
        )
        page.evaluate(scroll)
        wait_for_text(page, ".sums", "131 in all")
        page.evaluate(scroll)
        wait_for_text(page, cell("run"), "first")
        assert len(texts(page, ROW)) < 60
        assert page.evaluate("(id) => !!document.querySelector(`a[href*='${id}']`)", first)


def test_a_key_without_admin_sees_the_runs_and_the_scope_that_shows_more(
    browser: Browser, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    key, admin = key_of(directory, "read", "send"), key_of(directory, "send", "admin", "read")
    with scripted_server(directory, REATTACH_PAGE="on") as server:
        with raw_client(server.url, authorization=f"Bearer {admin}") as raw:
            run = run_of(Threads(raw), "[chunks=3]")
        with view(browser, server.url, f"runs&token={key}") as page:
            wait_for_text(page, cell("status"), "completed")
            wait_for_text(page, ".limits", "admin")
            assert page.evaluate("(id) => !!document.querySelector(`a[href*='${id}']`)", run)
            assert texts(page, cell("agent")) == ["a"]
            assert texts(page, "th.col-readers") == []


@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_everyone_can_use_the_list_at_any_width(
    browser: Browser, served: ServerProcess, threads: Threads, width: int
) -> None:
    run_of(threads, "[chunks=1]")
    with view(browser, served.url, "runs") as page:
        page.resize(width, 800)
        page.wait_until(f"() => document.querySelector('{ROW}')")
        assert_usable_by_everyone(page)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
