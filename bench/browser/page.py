"""The server's page in a browser: its size, its first paint, and its work while many runs stream.

Script time and heap are properties of the page. Frames a second depend on the browser's flags for
graphics, so they are not measured.
"""

import gzip
import time
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx2

from bench.options import Options
from reattach.testing.programs.server import ServerProcess
from tests.support.browser import Browser, Page, require_browser

RUNS: Final = 50
EVENTS, QUICK_EVENTS = 20_000, 2000
STORM_RATE: Final = 20
STORM_SECONDS, QUICK_STORM_SECONDS = 20, 5
FOLLOWED_RATE: Final = 500
JUMPS: Final = (0.5, 1.0, 0.25, 0.75, 0.01)
LIMIT_SECONDS: Final = 300.0
DOCUMENT: Final = Path(__file__).parents[2] / "ARCHITECTURE.md"
ENVIRONMENT: Final = {
    "REATTACH_DEFAULT_MODEL": "scripted/echo",
    "REATTACH_LOG_LEVEL": "warning",
    "REATTACH_QUOTA_RUNS": "1000",
}


def main(options: Options) -> None:
    """Print the figures of the page."""
    node = require_browser()
    _print_sizes()
    events = QUICK_EVENTS if options.quick else EVENTS
    seconds = QUICK_STORM_SECONDS if options.quick else STORM_SECONDS
    with (
        TemporaryDirectory() as directory,
        ServerProcess(
            Path(directory) / "data", arguments=["--scripted"], environment=ENVIRONMENT
        ) as server,
        Browser(node) as browser,
    ):
        runs = Runs(server.url)
        _print_first_paint(browser, server.url)
        _print_storm(browser, server.url, runs, seconds)
        run = runs.begin(f"[rate={FOLLOWED_RATE}]{_document(events)}")
        _print_followed(browser, server.url, run, events)
        _print_jumps(browser, server.url, run)


class Runs:
    """Begins runs of the server."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=url, timeout=LIMIT_SECONDS)

    def begin(self, text: str) -> str:
        """Begin a run of a new agent, and return its id."""
        agent = self._client.post("/v1/agents/", json={"name": "storm"}).json()["id"]
        body = {
            "agent_id": agent,
            "messages": [{"role": "user", "content": text}],
            "streaming": True,
            "stream_tokens": True,
            "background": True,
        }
        path = "/v1/conversations/default/messages"
        with self._client.stream("POST", path, json=body) as response:
            return response.headers["x-run-id"]

    def events_of(self, run: str) -> int:
        """Return the number of events of a run."""
        found = self._client.get(f"/v1/runs/{run}/frames", params={"limit": 1}).json()
        return int(found["last_seq"])


def _document(words: int) -> str:
    """Return Markdown of about this many words, which the scripted engine repeats one by one."""
    text = DOCUMENT.read_text(encoding="utf-8").replace("[", "(").replace("]", ")")
    once = text.split(" ")
    times = -(-words // len(once))
    return "\n\n".join([text] * times)


def _print_sizes() -> None:
    folder = files("reattach.http") / "page"
    total = 0
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.name != "licenses.txt":
            size = len(gzip.compress(one.read_bytes(), 9))
            total += size
            print(f"{one.name}: {size:,} bytes compressed")
    print(f"in all: {total:,} bytes compressed")


def _print_first_paint(browser: Browser, url: str) -> None:
    with browser.page(f"{url}/#runs") as page:
        paint = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
        page.wait_until(paint)
        print(f"first contentful paint, cold: {page.evaluate(paint):.0f} ms")


def _print_storm(browser: Browser, url: str, runs: Runs, seconds: float) -> None:
    for view in ("runs", "server"):
        chunks = int(STORM_RATE * (seconds + 30))
        begun = [runs.begin(f"[chunks={chunks}][rate={STORM_RATE}]") for _ in range(RUNS)]
        with browser.page(f"{url}/#{view}") as page:
            page.wait_until("() => document.querySelector('table tbody tr')")
            before, first = page.metrics(), sum(map(runs.events_of, begun))
            time.sleep(seconds)
            after, last = page.metrics(), sum(map(runs.events_of, begun))
            _print_work(f"{RUNS} runs stream, {view} open", before, after, last - first)
        for run in begun:
            runs._client.post(f"/v1/runs/{run}/cancel")


def _print_followed(browser: Browser, url: str, run: str, events: int) -> None:
    with browser.page(f"{url}/#inspector/{run}") as page:
        page.wait_until("() => document.querySelector('#seq')?.value > 0")
        before, first = page.metrics(), _seq_of(page)
        deadline = time.monotonic() + LIMIT_SECONDS
        while (seq := _seq_of(page)) < events * 0.9:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page has {seq} of {events} events")
            time.sleep(0.2)
        _print_work("the Inspector follows", before, page.metrics(), seq - first)


def _print_jumps(browser: Browser, url: str, run: str) -> None:
    with browser.page(f"{url}/#inspector/{run}&seq=1") as page:
        page.wait_until("() => document.querySelector('#seq')?.max > 1")
        for part in JUMPS:
            frames, answer, seq = page.evaluate(_JUMP, part)
            print(f"jump to {seq:,}: frames after {frames:.0f} ms, answer after {answer:.0f} ms")
        print(f"heap after the jumps: {page.metrics()['heap_bytes'] / 1e6:.1f} MB")


_JUMP = """async (part) => {
  const slider = document.querySelector('#seq');
  const seq = Math.max(Math.round(slider.max * part), 1);
  const began = performance.now();
  const until = (done) => new Promise((resolve) => {
    const look = () => done() ? resolve(performance.now() - began) : requestAnimationFrame(look);
    look();
  });
  slider.value = seq;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  const text = (one) => document.querySelector(one)?.textContent.replaceAll(',', '') ?? '';
  const frames = await until(() => document.querySelector('.frame.current code') &&
    text('.frame.current b') === String(seq));
  const answer = await until(() => text('.answer-pane .pane-head').endsWith(` ${seq}`));
  return [frames, answer, seq];
}"""


def _seq_of(page: Page) -> int:
    return int(page.evaluate("() => Number(document.querySelector('#seq').value)"))


def _print_work(name: str, before: dict[str, float], after: dict[str, float], events: int) -> None:
    took = {one: after[one] - before[one] for one in before}
    thousands = max(events, 1) / 1000
    print(
        f"{name}: {events:,} events in {took['seconds']:.0f} s; "
        f"{1000 * took['script_seconds'] / thousands:.1f} ms of script and "
        f"{1000 * took['task_seconds'] / thousands:.1f} ms of the main thread for each 1,000; "
        f"main thread {100 * took['task_seconds'] / took['seconds']:.0f} % busy; "
        f"heap {after['heap_bytes'] / 1e6:.1f} MB"
    )
