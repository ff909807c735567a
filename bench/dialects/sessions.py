"""Sessions of the clients: one user each, who sends a message and sees the answer.

A session runs in a program (``programs``, and ``tests/dialects/node/sessions`` for Node) or in a
page of a browser. Its methods return how the answer ended for the client: ``completed``, ``asked``
for an approval, ``cancelled``, ``failed: …``, ``broke: …`` if the connection broke, or ``hangs`` if
the client takes an answer without an end for a whole one.
"""

import queue
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from reattach.testing.closing import Closing
from tests.support.browser import Browser, Page
from tests.support.node_driver import Json, ProgramDriver

CALL_SECONDS: Final = 60.0
"""Bound of every call."""

Shown = Sequence[Sequence[str]]
"""The things that a user sees of an answer, in order: their kind and text."""


class Session(ABC):
    """One user of a client."""

    @abstractmethod
    def call(self, name: str, *args: Any) -> Any:
        """Call a method of the session in its program."""

    @abstractmethod
    def reloaded(self, kept: Any) -> "Session":
        """Return the session that begins anew, with what an application kept of this one."""

    def send(self, text: str) -> str:
        return str(self.call("send", text))

    def resume(self) -> str:
        """Go on with the answer, as the client does it."""
        return str(self.call("resume"))

    def repeat(self) -> str:
        """Send the same message again, as its application does after a lost answer."""
        return str(self.call("repeat"))

    def approve(self) -> str:
        return str(self.call("approve"))

    def cancel(self) -> None:
        self.call("cancel")

    @property
    def kept(self) -> Any:
        """The data that an application keeps over a reload."""
        return self.call("view")["kept"]

    @property
    def shown(self) -> Shown:
        shown: Shown = self.call("view")["shown"]
        return shown

    def sending(self, text: str) -> "Future[str]":
        """Send in the background."""
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self.send, text)
        pool.shutdown(wait=False)
        return future


class _Call:
    def __init__(self) -> None:
        self.lines: queue.Queue[Json] = queue.Queue()


class ProgramSession(Session):
    """A session in a program that follows calls."""

    def __init__(self, driver: ProgramDriver, options: Json) -> None:
        self._driver = driver
        self._options = options
        self._name = uuid.uuid4().hex
        self._asked({"open": options})

    def call(self, name: str, *args: Any) -> Any:
        return self._asked({"call": name, "args": args})

    def reloaded(self, kept: Any) -> Session:
        return ProgramSession(self._driver, {**self._options, "kept": kept})

    def _asked(self, line: Json) -> Any:
        call = self._driver.begin(_Call(), {"session": self._name, **line})
        try:
            answer = call.lines.get(timeout=CALL_SECONDS)
        except queue.Empty:
            raise TimeoutError(f"no answer after {CALL_SECONDS:g} s") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]


class PageSession(Session):
    """A session in a page of the browser."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._page.wait_until("() => globalThis.session")

    def call(self, name: str, *args: Any) -> Any:
        return self._page.evaluate("([name, args]) => session[name](...args)", [name, args])

    def reloaded(self, kept: Any) -> Session:  # noqa: ARG002  a page keeps its address
        self._page.reload()
        return PageSession(self._page)


class Sessions(Closing):
    """The sessions of one client."""

    @abstractmethod
    def open(self, url: str, server: str, agent: str) -> Session:
        """Open a session with an agent, over a relay at ``url`` before the server."""

    def end(self) -> None:
        """End all sessions."""


class Programs(Sessions):
    """The program of one client, which has all of its sessions."""

    def __init__(self, client: str, command: Sequence[str], folder: Path) -> None:
        self._client = client
        self._driver = ProgramDriver(command, folder)

    def open(self, url: str, server: str, agent: str) -> Session:
        options = {"client": self._client, "url": url, "server": server, "agent": agent}
        return ProgramSession(self._driver, {**options, "kept": None})

    def close(self) -> None:
        self._driver.close()


class Pages(Sessions):
    """Pages of a browser with a client in them."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._stack = ExitStack()

    def open(self, url: str, server: str, agent: str) -> Session:  # noqa: ARG002
        query = urlencode({"api": f"{url}/ai-sdk/{agent}/chat", "id": uuid.uuid4().hex})
        return PageSession(self._stack.enter_context(self._browser.page(f"{self._url}/?{query}")))

    def end(self) -> None:
        self._stack.close()

    def close(self) -> None:
        self.end()
