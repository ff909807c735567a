"""The Inspector of the page: any moment of a run, its frames, readers, cut-offs and states."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.browser.page_views import (
    assert_usable_by_everyone,
    background_run,
    texts,
    view,
    wait_for_text,
)
from tests.clients.conftest import scripted_server
from tests.support.browser import Browser, Page
from tests.support.threads import Threads, raw_client

LENGTH = 300
ENDLESS = "[chunks=100000][rate=50]"
CURRENT = ".frame.current"


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


@pytest.fixture(scope="module")
def ended(threads: Threads) -> str:
    """A run of reasoning, a tool and text, with a silence of more than five seconds."""
    text = f"[think=3][tool=weather][wait=5.2][chunks={LENGTH}]"
    thread = threads.conversation()
    run = background_run(thread, text)
    assert thread.raw.post(f"/v1/runs/{run}/stream", json={}).status_code == 200
    return run


def frames_of(raw: httpx.Client, run: str) -> list[dict[str, object]]:
    frames: list[dict[str, object]] = []
    while True:
        query = {"after_seq": len(frames), "limit": 500}
        page = raw.get(f"/v1/runs/{run}/frames", params=query).json()
        frames += page["items"]
        if len(frames) == page["last_seq"]:
            return frames


def text_until(frames: list[dict[str, object]], seq: int) -> str:
    """Return the text of the answer as of an event."""
    events = [json.loads(str(one["frame"]).partition("data: ")[2]) for one in frames[:seq]]
    return "".join(e["content"] for e in events if e["message_type"] == "assistant_message")


def wait_for_moment(page: Page, seq: int) -> None:
    """Wait until the answer and the frames are those of an event."""
    wait_for_text(page, ".answer-pane .pane-head", f"as of event {seq:,}")
    wait_for_text(page, f"{CURRENT} b", str(seq))


def seq_of(page: Page) -> int:
    return int(page.evaluate("() => Number(document.querySelector('#seq').value)"))


def test_the_slider_shows_the_answer_as_of_any_event_and_the_frame_beside_it(
    browser: Browser, served: ServerProcess, raw: httpx.Client, ended: str
) -> None:
    frames = frames_of(raw, ended)
    last = len(frames)
    with view(browser, served.url, f"inspector/{ended}") as page:
        wait_for_moment(page, last)
        for seq in (150, 20, 299, 9):
            page.act("#seq", "fill", str(seq))
            wait_for_moment(page, seq)
            written = (
                "(text) => document.querySelector('.answer-pane .markdown').innerText === text"
            )
            page.wait_until(written, text_until(frames, seq).strip())
            assert texts(page, ".whole pre") == [str(frames[seq - 1]["frame"]).strip()]
        page.wait_until("(end) => location.hash.endsWith(end)", "&seq=9")
        # Of the run's 300 frames, elements are there only for those around the moment.
        assert len(texts(page, ".frame")) < 60


def test_a_link_leads_to_a_moment_and_the_keys_move_from_there(
    browser: Browser, served: ServerProcess, ended: str
) -> None:
    with view(browser, served.url, f"inspector/{ended}&seq=150") as page:
        wait_for_moment(page, 150)
        for key, seq in (("ArrowRight", 151), ("Shift+ArrowRight", 251), ("ArrowLeft", 250)):
            page.act("body", "press", key)
            wait_for_moment(page, seq)
        page.act("#seq", "press", "Shift+ArrowLeft")
        wait_for_moment(page, 150)
        page.act("button[title='First event']", "click")
        wait_for_moment(page, 1)
        page.evaluate("() => { location.hash = location.hash.replace(/seq=.*/, 'seq=42'); }")
        wait_for_moment(page, 42)


def test_an_event_of_scrolling_after_the_view_was_left_is_no_error(
    browser: Browser, served: ServerProcess, ended: str
) -> None:
    with view(browser, served.url, f"inspector/{ended}&seq=150") as page:
        wait_for_moment(page, 150)
        page.evaluate("() => { window.list = document.querySelector('.frames .virtual'); }")
        page.evaluate("() => { location.hash = '#server'; }")
        wait_for_text(page, ".card h2", "Processes")
        page.evaluate("() => { window.list.dispatchEvent(new Event('scroll')); }")


def test_times_tools_and_attempts_of_a_run_are_shown(
    browser: Browser, served: ServerProcess, ended: str
) -> None:
    with view(browser, served.url, f"inspector/{ended}") as page:
        page.wait_until("() => document.querySelector('.lanes canvas')")
        label = page.evaluate("() => document.querySelector('.lanes canvas').ariaLabel")
        assert re.match(r"Gaps between \d+ events over time, 1 silence of more than 5 s", label)
        wait_for_text(page, "[aria-label=Work]", "1 tool call")
        wait_for_text(page, "[aria-label=Work]", "2 steps")
        wait_for_text(page, ".happened", "attempt 1")
        wait_for_text(page, ".happened", "completed: end_turn")
        page.act("[aria-label=Work] button.seq", "click")  # Where the tool was called.
        wait_for_text(page, f"{CURRENT} .type", "tool_call")
        assert_usable_by_everyone(page)


def test_frames_are_found_by_type_and_by_text(
    browser: Browser, served: ServerProcess, ended: str
) -> None:
    with view(browser, served.url, f"inspector/{ended}") as page:
        page.act("select[aria-label='Type of frames']", "selectOption", "reasoning_message")
        wait_for_text(page, ".matches", "3 matches")
        assert len(texts(page, ".frame")) == 3
        page.act("select[aria-label='Type of frames']", "selectOption", "")
        page.act("body", "press", "/")
        page.act(":focus", "fill", '"t250 "')
        page.act(":focus", "press", "Enter")
        wait_for_text(page, ".matches", "1 match in")
        page.act(".matches button >> nth=0", "click")
        wait_for_text(page, ".whole pre", '"t250 "')


def test_following_shows_events_as_they_come_until_the_run_is_cancelled(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    run = background_run(threads.conversation(), ENDLESS)
    with view(browser, served.url, f"inspector/{run}") as page:
        wait_for_text(page, ".run-acts", "live")
        page.wait_until("() => document.querySelector('#seq').value > 20")
        page.act("body", "press", "ArrowLeft")
        held = seq_of(page)
        wait_for_moment(page, held)
        page.wait_until("(held) => document.querySelector('#seq').max > held + 20", held)
        assert seq_of(page) == held
        page.act("body", "press", "f")
        page.wait_until("(held) => document.querySelector('#seq').value > held + 20", held)
        page.act("button:has-text('Cancel')", "click")
        wait_for_text(page, ".run-head .lamp", "cancelled")
        page.wait_until("() => !document.querySelector('button[aria-pressed]')")
        wait_for_text(page, "[role=status].unseen", "Answer finished")
        wait_for_text(page, ".happened", "cancel requested")


def test_readers_are_shown_while_they_read_and_cut_offs_afterwards(
    browser: Browser, served: ServerProcess, raw: httpx.Client, threads: Threads
) -> None:
    run = background_run(threads.conversation(), ENDLESS)
    body = {"run_id": run, "scope": "read", "expires_in_seconds": 3}
    token = raw.post("/v1/tokens", json=body).json()["token"]

    def read() -> None:
        headers = {"authorization": f"Bearer {token}", "user-agent": "my-app/1.2"}
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{served.url}/v1/runs/{run}/stream", json={}, headers=headers)

    with (
        ThreadPoolExecutor() as pool,
        view(browser, served.url, f"inspector/{run}&seq=1") as page,
    ):
        reading = pool.submit(read)
        wait_for_text(page, "[aria-label=Readers] td", "my-app/1.2")
        wait_for_text(page, ".happened", "my-app/1.2 was cut off")
        wait_for_text(page, "[aria-label=Readers]", "Nobody reads this run now.")
        reading.result(20)
        page.act("button:has-text('Cancel')", "click")
        wait_for_text(page, ".run-head .lamp", "cancelled")


def test_a_run_that_was_continued_after_a_crash_shows_both_attempts(
    browser: Browser, tmp_path: Path
) -> None:
    with scripted_server(tmp_path) as server:
        with raw_client(server.url) as raw:
            run = background_run(Threads(raw).conversation(), "[chunks=120][rate=50]")
            with raw.stream("POST", f"/v1/runs/{run}/stream", json={}) as events:
                next(line for line in events.iter_lines() if '"seq_id":20,' in line)
        server.kill()
        server.start()
        with view(browser, server.url, f"inspector/{run}") as page:
            wait_for_text(page, ".happened", "continued by prefix after a crash")
            wait_for_text(page, ".lanes .missing", "No times of 1–")
            page.act(".happened .seq", "click")  # Where the second attempt began.
            wait_for_text(page, ".answer-pane .markdown", "t0 t1")


def test_a_stream_token_shows_its_run_alone(
    browser: Browser, served: ServerProcess, raw: httpx.Client, ended: str
) -> None:
    token = raw.post("/v1/tokens", json={"run_id": ended, "scope": "read"}).json()["token"]
    with view(browser, served.url, f"runs&token={token}") as page:
        wait_for_text(page, ".empty", "A stream token has no list of runs")
        page.act(".empty a", "click")
        wait_for_text(page, ".answer-pane .markdown", "t0 t1")
        wait_for_text(page, "[aria-label=Readers]", "This needs a key with the scope admin")
        page.evaluate("() => { location.hash = '#inspector'; }")
        wait_for_text(page, ".choose", f"This token follows {ended}.")


def test_without_a_run_the_last_five_are_offered(
    browser: Browser, served: ServerProcess, threads: Threads, ended: str
) -> None:
    agent = threads.default_thread().agent_id
    for at in range(6):
        background_run(threads.conversation(agent), f"[chunks=1] run {at}")
    with view(browser, served.url, "inspector") as page:
        wait_for_text(page, ".choose li", "run 5")
        assert len(texts(page, ".choose li")) == 5
        assert_usable_by_everyone(page)
        page.act("#run-id", "fill", ended)
        page.act("#run-id", "press", "Enter")
        wait_for_text(page, ".run-head", ended[-8:])


def test_an_unknown_run_is_said_to_be_absent_or_of_another_tenant(
    browser: Browser, served: ServerProcess
) -> None:
    unknown = "run-00000000-0000-4000-8000-000000000000"
    with browser.page(f"{served.url}/#inspector/{unknown}") as page:
        wait_for_text(page, ".empty", "does not exist, or is another tenant's")
        assert len([one for one in page.requests if unknown in one]) == 1


@pytest.mark.parametrize("odd", ["run-=x", "nothing?a=b", "run-%zz"])
def test_an_odd_id_is_a_run_that_is_not_here_and_an_unknown_view_is_named(
    browser: Browser, served: ServerProcess, odd: str
) -> None:
    with browser.page(f"{served.url}/#inspector/{odd}") as page:
        wait_for_text(page, ".empty", "This run is not here")
        page.evaluate("() => { location.hash = '#elsewhere'; }")
        wait_for_text(page, ".empty", "No such view")


def test_a_failed_run_shows_why_in_its_answer_and_in_its_history(
    browser: Browser, served: ServerProcess, threads: Threads
) -> None:
    run = background_run(threads.conversation(), "[chunks=2][fail=1]")
    with view(browser, served.url, f"inspector/{run}") as page:
        wait_for_text(page, ".run-head .lamp", "failed")
        page.act("body", "press", "ArrowRight")
        wait_for_text(page, ".answer-pane .note.bad", "The scripted model failed")
        wait_for_text(page, ".happened .bad", "The scripted model failed")


def test_a_link_to_an_event_that_the_run_lacks_says_so(
    browser: Browser, served: ServerProcess, ended: str
) -> None:
    with view(browser, served.url, f"inspector/{ended}&seq=99999") as page:
        wait_for_text(page, ".toast", "The run has no event 99,999. Event")
        page.evaluate("(run) => { location.hash = `#inspector/${run}&seq=many`; }", ended)
        wait_for_text(page, ".toast", '"many" in the address is no number of an event.')


def test_a_run_past_its_retention_shows_its_messages(browser: Browser, tmp_path: Path) -> None:
    keeping = {"REATTACH_RETENTION_SECONDS": "1"}
    with scripted_server(tmp_path, **keeping) as server, raw_client(server.url) as raw:
        run = background_run(Threads(raw).conversation(), "[chunks=3]")
        with browser.page(f"{server.url}/#inspector/{run}") as page:
            wait_for_text(page, ".gone", "past their retention and were deleted")
            wait_for_text(page, ".answer-pane", "t0 t1 t2")
            assert page.evaluate("() => document.querySelector('#seq')") is None
            assert_usable_by_everyone(page)


def test_on_a_phone_the_panes_are_tabs(browser: Browser, served: ServerProcess, ended: str) -> None:
    with view(browser, served.url, f"inspector/{ended}&seq=100") as page:
        page.resize(390, 780)
        wait_for_text(page, ".answer-pane .pane-head", "as of event 100")
        shown = {"Answer": ".answer-pane", "Frames": ".frames", "Events": ".happened"}
        for name, selector in shown.items():
            page.act(f"[role=tab]:has-text('{name}')", "click")
            for other in shown.values():
                seen = page.act(other, "isVisible")
                assert seen == (other == selector), (name, other)
        assert_usable_by_everyone(page)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
