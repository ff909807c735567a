"""Makes the pictures of the page that the documentation shows: ``scripts/screenshots``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import httpx

from reattach.domain.messages import ReasoningPart, Role, ToolCallDelta
from reattach.embed import Delta, FunctionEngine, StepFinished, Turn, Usage
from reattach.server.assembly import assemble
from reattach.settings import Settings
from tests.browser.page_views import chat_of, say, wait_for_end, wait_for_text
from tests.support.browser import Browser, Page, require_browser
from tests.support.live_server import InLoop
from tests.support.threads import Thread, Threads, raw_client

WAIT_SECONDS: Final = 30.0
SIZE: Final = (1280, 800)
PHONE: Final = (390, 780)

QUESTION: Final = "Plan a day on Sark for us. We come from Guernsey and want to see La Coupée."
THOUGHT: Final = """They come by ferry, so the day has the length that the ferries leave.
La Coupée is in the south, half an hour by bicycle. The light is best in the afternoon, so the
order is north, lunch, south."""
ANSWER: Final = """## A day on Sark

There are **no cars** on Sark, so rent bicycles at the top of Harbour Hill. \
It is about 5 km from one end to the other.

| When | Where | How long |
|---|---|---|
| 08:55 | Arrive at Maseline Harbour | |
| 09:30 | La Seigneurie and its gardens | 2 h |
| 12:00 | Lunch on the Avenue | 1 h |
| 13:30 | **La Coupée**, then Little Sark | 3 h |
| 17:30 | Ferry to Guernsey | 55 min |

- Walk over La Coupée: cycling there is *not allowed*.
- The tide is low at 14:10, so the Venus Pool can be reached.

Shall I book the ferry for two?
"""
BOOKED: Final = "Done: two seats at **08:00**, and back at **17:30**. The booking is `SRK-2214`."


async def guide(turn: Turn) -> AsyncIterator[str | Delta]:
    """Answer as a guide: the plan, then a booking that has to be approved."""
    text = turn.input[-1].text if turn.input and turn.input[-1].role is Role.USER else ""
    if turn.due:
        for word in BOOKED.split(" "):
            await asyncio.sleep(0.02)
            yield word + " "
    elif "ook" in text:
        yield "I book two seats, if you agree. "
        yield ToolCallDelta(
            "call-ferry", "book_ferry", '{"seats": 2, "leaves": "08:00"}', needs_approval=True
        )
    else:
        for word in THOUGHT.split(" "):
            await asyncio.sleep(0.02)
            yield ReasoningPart(word + " ")
        for piece in ANSWER.replace(" ", " \0").split("\0"):
            await asyncio.sleep(0.04)
            yield piece
    yield StepFinished(Usage(prompt_tokens=412, completion_tokens=180))


async def endless(turn: Turn) -> AsyncIterator[str]:
    """Write for as long as the pictures take."""
    pace = 0.02 + 0.02 * (len(turn.input[-1].text) % 7)
    for number in range(100_000):
        await asyncio.sleep(pace if number % 90 else pace + 0.8)
        yield f"word {number} "


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serve in a thread, and yield the address."""
    engine = FunctionEngine({"guide": guide, "writer": endless}, provider_name="island")
    address: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        settings = Settings(data_dir=directory, port=0)
        async with assemble(settings, engines=[engine]) as context:
            server = InLoop(context, "", None)
            async with server.running(settings, drains=True):
                address.append(server._url)
                ready.set()
                await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(WAIT_SECONDS)
        yield address[0]
    finally:
        done.set()
        thread.join(WAIT_SECONDS)


@contextmanager
def going_on(raw: httpx.Client) -> Iterator[str]:
    """Have runs that go on, with readers, and yield one of them."""
    runs = []
    with ExitStack() as readers:
        for question in ("Write about the sea", "A long story", "Tides", "Birds of Sark", "Herm"):
            thread = Threads(raw, "island/writer").conversation()
            raw.patch(f"/v1/agents/{thread.agent_id}", json={"name": "writer"})
            body = {"messages": [thread.message(question)], "stream_tokens": True}
            sent = thread.raw.post(f"/v1/agents/{thread.agent_id}/messages/async", json=body)
            assert sent.status_code == 200, sent.text
            runs.append(sent.json()["id"])
        for run in [*runs[1:], runs[-1]]:
            readers.enter_context(raw.stream("POST", f"/v1/runs/{run}/stream", json={}))
        yield runs[-1]


class Camera:
    """Takes the pictures of one tab."""

    def __init__(self, page: Page, url: str, target: Path) -> None:
        self.page = page
        self._url = url
        self._target = target

    def take(self, name: str) -> None:
        self.page.screenshot(self._target / f"page-{name}.png")

    def show(self, fragment: str, selector: str, text: str) -> None:
        self.page.evaluate("(hash) => { location.hash = hash; }", fragment)
        wait_for_text(self.page, selector, text)


def chat(camera: Camera, thread: Thread) -> None:
    page = camera.page
    camera.show(chat_of(thread), ".log", "Talk to")
    say(page, QUESTION)
    wait_for_text(page, ".answer", "no cars")
    page.act("select[aria-label='Length of the cut']", "selectOption", "3")
    page.act("button:has-text('Cut 3 s')", "click")
    page.wait_until("() => /[2-9]\\d events missing/.test(document.body.innerText)")
    camera.take("cut")
    wait_for_end(page)
    say(page, "Yes, book it.")
    wait_for_text(page, ".tool .badge", "waits for you")
    page.prefer("light")
    camera.take("chat")
    page.resize(*PHONE)
    page.prefer("dark")
    camera.take("phone")
    page.resize(*SIZE)


def main() -> None:
    target = Path(sys.argv[1]).resolve()  # The driver has a folder of its own.
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(Path(directory)) as url,
        raw_client(url) as raw,
        going_on(raw) as run,
        Browser(require_browser()) as browser,
    ):
        thread = Threads(raw, "island/guide").conversation()
        raw.patch(f"/v1/agents/{thread.agent_id}", json={"name": "guide"})
        with browser.page(url) as page:
            page.resize(*SIZE)
            page.prefer("dark")
            camera = Camera(page, url, target)
            chat(camera, thread)
            camera.show("runs", "main", "running")
            page.prefer("light")
            page.wait_until("() => document.body.innerText.includes('needs approval')")
            camera.take("runs")
            camera.show("server", "main", "p99")
            camera.take("server")
            camera.show(f"inspector/{run}", "main", "word 1")
            page.prefer("dark")
            page.wait_until("() => document.querySelectorAll('[aria-label=Readers] tr').length > 1")
            camera.take("inspector")


if __name__ == "__main__":
    main()
