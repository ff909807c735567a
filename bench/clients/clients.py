"""The clients: pages of a browser, and programs that keep what they show in a file."""

import json
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.clients.scene import LIMIT_SECONDS, Run, Scene
from bench.contenders.contender import ROOT, python
from reattach.testing.closing import Closing
from tests.support.browser import Browser, PageServer, require_browser
from tests.support.javascript_client import PACKAGE, require_client

PROGRAMS: Final = Path(__file__).parent / "programs"
MODULES: Final = "bench.clients.programs"

ENDED: Final = "ended"
UNEXPLAINED: Final = "without a reason"


@dataclass(frozen=True, slots=True)
class View:
    """A user's view of an answer."""

    text: str
    end: str | None
    """ENDED, the reason why the client stopped, or UNEXPLAINED; None while it goes on."""


class Client(Closing):
    """One client that shows the answer of a run."""

    @abstractmethod
    def start(self, scene: Scene, run: Run) -> None:
        """Show the answer of the conversation's active run."""

    @abstractmethod
    def restart(self) -> None:
        """End it as a crash or a reload does, and start it again with what it kept."""

    @abstractmethod
    def asleep(self) -> AbstractContextManager[None]:
        """Return a context in which its process is stopped (SIGSTOP)."""

    @property
    @abstractmethod
    def view(self) -> View:
        """A user's view of it now."""


class PageClient(Client):
    """A page of Chromium, which keeps the text and its position in ``sessionStorage``."""

    def __init__(self, browser: Browser, html: str) -> None:
        self._browser = browser
        self._stack = ExitStack()
        self._html = html

    def start(self, scene: Scene, run: Run) -> None:
        html, module = PROGRAMS / self._html, PACKAGE / "dist" / "index.js"
        files = {"/": html.read_bytes(), "/client.js": module.read_bytes()}
        pages = self._stack.enter_context(PageServer(files))
        query = f"server={scene.relay.url}&conversation={run.conversation_id}"
        url = f"{pages.url}/?{query}&tokens={scene.token_url}"
        self._page = self._stack.enter_context(self._browser.page(url))

    def restart(self) -> None:
        self._page.reload()

    def asleep(self) -> AbstractContextManager[None]:
        return self._browser.asleep()

    @property
    def view(self) -> View:
        text, end = self._page.evaluate("() => [window.shown(), window.end ?? null]")
        return View(text, end)

    def close(self) -> None:
        self._stack.close()


class ProgramClient(Client):
    """A program that keeps the text and its position in a file, and prints how it ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._folder = Path(tempfile.mkdtemp(prefix="bench-client-"))
        self._process: subprocess.Popen[str] | None = None
        self._printed: str | None = None

    def start(self, scene: Scene, run: Run) -> None:
        given = {
            "server": scene.relay.url,
            "conversation": run.conversation_id,
            "tokens": scene.token_url,
            "kept": str(self._folder / "kept.json"),
        }
        self._arguments = [*self._command, json.dumps(given)]
        self._spawn()

    def restart(self) -> None:
        self._end()
        self._spawn()

    @contextmanager
    def asleep(self) -> Iterator[None]:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @property
    def view(self) -> View:
        file = self._folder / "kept.json"
        text = json.loads(file.read_text("utf-8"))["text"] if file.exists() else ""
        assert self._process is not None
        if self._process.poll() is None:
            return View(text, None)
        assert self._process.stdout is not None
        if self._printed is None:
            self._printed = self._process.stdout.read().strip().rpartition("\n")[2]
        return View(text, self._printed or f"exit status {self._process.returncode}")

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> None:
        self._printed = None
        self._process = subprocess.Popen(
            self._arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT_SECONDS)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def clients() -> Iterator[dict[str, Callable[[], Client]]]:
    """Start the browser, and yield how to make each client, by its name in the table."""
    with ExitStack() as stack:
        browser: list[Browser] = []

        def page(html: str) -> Client:
            if not browser:
                require_client()
                browser.append(stack.enter_context(Browser(require_browser())))
            return PageClient(browser[0], html)

        node = shutil.which("node") or "node"
        yield {
            "EventSource, in Chromium": lambda: page("event_source.html"),
            "JavaScript client, in Chromium": lambda: page("javascript.html"),
            "`fetch`, in Node": lambda: ProgramClient([node, str(PROGRAMS / "fetch.mjs")]),
            "Python client": lambda: ProgramClient(python(f"{MODULES}.python_async")),
            "Python client, synchronous": lambda: ProgramClient(python(f"{MODULES}.python_sync")),
        }
