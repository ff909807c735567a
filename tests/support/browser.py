"""A headless Chromium in a process that follows orders; see ``tests/browser/driver.mjs``."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from reattach.testing.closing import Closing
from tests.support.missing import skip_or_fail
from tests.support.threads import WAIT_SECONDS

DIRECTORY: Final = Path(__file__).parents[1] / "browser"
CHROMIUM: Final = DIRECTORY / "node_modules/.browser/chromium"

_START_SECONDS: Final = 60.0


def require_browser() -> str:
    """Return Node, which drives the browser. If either is missing, skip, or fail in CI."""
    node = shutil.which("node")
    if node is None or not CHROMIUM.is_file():
        skip_or_fail("Chromium is not installed: install Node 20 or newer and run scripts/setup")
    return node


class BrowserError(Exception):
    """An order failed; the text is the stack of the driver or of the page."""


class Browser(Closing):
    """The browser. Its calls block until the order is done; it is thread-safe."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(
            [node, "driver.mjs", str(CHROMIUM)],
            cwd=DIRECTORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._lock = threading.Lock()
        self._ready: queue.Queue[str] = queue.Queue()
        self._answers: list[queue.Queue[dict[str, Any]]] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        try:
            self.version = self._ready.get(timeout=_START_SECONDS)
        except queue.Empty:
            self.version = ""
        if not self.version:
            self.close()
            raise RuntimeError("The browser did not start. Its driver has printed the reason.")

    def close(self) -> None:
        """End the browser with all its pages."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)
        self._reading.join(WAIT_SECONDS)
        self._process.stdout.close()

    @contextmanager
    def page(self, url: str | None = None, *, beside: Page | None = None) -> Iterator[Page]:
        """Open a page in a profile of its own, or in the profile of the page ``beside``."""
        number = self.order("open", url=url, beside=None if beside is None else beside.number)
        page = Page(self, number)
        try:
            yield page
        finally:
            self.order("close", page=number)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop the processes of all pages, as a laptop does that is closed."""
        pids = self.order("renderers")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def order(self, name: str, **arguments: Any) -> Any:
        """Have an order of the driver followed, and return its value. Raises BrowserError."""
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        with self._lock:
            line = {"id": len(self._answers), "do": name, **arguments}
            self._answers.append(answer)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        given = answer.get(timeout=WAIT_SECONDS)
        if "error" in given:
            raise BrowserError(given["error"])
        return given["value"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            if "ready" in line:
                self._ready.put(line["ready"])
            else:
                self._answers[line["id"]].put(line)
        self._ready.put("")  # The driver has ended.


class Page:
    """A tab of the browser."""

    def __init__(self, browser: Browser, number: int) -> None:
        self._browser = browser
        self.number = number

    def goto(self, url: str) -> None:
        """Load a page and wait for its ``load`` event."""
        self._browser.order("goto", page=self.number, url=url)

    def reload(self) -> None:
        """Load the page again and wait for its ``load`` event."""
        self._browser.order("reload", page=self.number)

    def bring_to_front(self) -> None:
        """Make this tab the visible one of its profile."""
        self._browser.order("bring_to_front", page=self.number)

    def evaluate(self, code: str, argument: Any = None) -> Any:
        """Call the JavaScript function ``code`` with the argument in the page.

        A promise is awaited. The result is plain data. Raises BrowserError.
        """
        return self._browser.order("evaluate", page=self.number, code=code, argument=argument)

    def act(self, selector: str, action: str, *args: Any) -> Any:
        """Do an action of Playwright on the element, such as ``fill`` or ``press``, as a user does.

        Waits until the element is visible and enabled. Raises BrowserError after 15 seconds.
        """
        order = {"selector": selector, "action": action, "args": args}
        return self._browser.order("act", page=self.number, **order)

    def wait_until(self, code: str, argument: Any = None) -> None:
        """Wait until the JavaScript function ``code`` returns a true value.

        Raises BrowserError after 15 seconds.
        """
        self._browser.order("wait_until", page=self.number, code=code, argument=argument)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in CSS pixels."""
        self._browser.order("resize", page=self.number, width=width, height=height)

    def prefer(self, scheme: str) -> None:
        """Set the colours that the user prefers, ``light`` or ``dark``, and animate nothing."""
        self._browser.order("prefer", page=self.number, scheme=scheme)

    def metrics(self) -> dict[str, float]:
        """Return what the page has cost since the first call, and its heap after a collection.

        ``seconds`` is a clock; ``script_seconds`` and ``task_seconds`` are of its main thread.
        """
        found: dict[str, float] = self._browser.order("metrics", page=self.number)
        return found

    def screenshot(self, path: Path) -> None:
        """Write a picture of what is seen, as PNG."""
        self._browser.order("screenshot", page=self.number, path=str(path))

    @property
    def requests(self) -> list[str]:
        """The requests that it has made, as ``METHOD URL``."""
        made: list[str] = self._browser.order("requests", page=self.number)
        return made

    @property
    def log(self) -> list[str]:
        """The lines of its console, and the errors that nobody caught."""
        lines: list[str] = self._browser.order("log", page=self.number)
        return lines


class PageServer(Closing):
    """Serves pages from a loopback port: an origin of its own.

    ``files`` maps paths to bodies; the type follows from the ending. An unknown path is 404.
    """

    _TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript"}

    def __init__(self, files: Mapping[str, str | bytes], *, host: str = "127.0.0.1") -> None:
        self.files = dict(files)
        types, served = self._TYPES, self.files

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                body = served.get(path)
                data = body.encode() if isinstance(body, str) else body or b""
                self.send_response(404 if body is None else 200)
                kind = types.get(Path(path).suffix, "text/html")
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.port: int = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join(WAIT_SECONDS)
        self._server.server_close()
