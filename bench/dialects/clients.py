"""The clients of the matrix, and which situations each has no way to handle."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.contenders.contender import ROOT
from bench.dialects.sessions import Pages, Programs, Sessions
from tests.applications.programs import require_program
from tests.browser.bundle import bundled
from tests.dialects.node_programs import DIRECTORY, require_node
from tests.support.browser import Browser, PageServer, require_browser

PROGRAMS: Final = Path(__file__).parent / "programs"
_SESSIONS: Final = DIRECTORY / "sessions"
_DRIVER: Final = ("-m", "bench.dialects.programs.driver")

ONLY_READS: Final = "it only reads"
_CHAT: Final[Mapping[str, str]] = {
    "cancel": "no cancel in this API",
    "approval": "no approvals in this API",
}
_AGENTS: Final[Mapping[str, str]] = {
    "cut": "raises; no reconnect in this client",
    "reload": "no reconnect in this client",
    "restart": "raises; no reconnect in this client",
    "cancel": "no cancel in this client",
    "past the end": "no reconnect in this client",
}


@dataclass(frozen=True)
class Client:
    """A row of the matrix."""

    name: str
    program: str
    """``node``, ``python``, ``applications`` for a Python of its own, or ``page``."""
    session: str
    """Its name in the program."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """The reasons why it cannot handle a situation."""
    cut_from_bytes: int = 0
    """The bytes of a response that are not cut."""

    @contextmanager
    def opened(self) -> Iterator[Sessions]:
        """Start its program or browser."""
        with _PROGRAMS[self.program](self.session) as sessions:
            yield sessions


def _node(session: str) -> Sessions:
    return Programs(session, [require_node("openai"), "driver.mjs"], _SESSIONS)


def _python(session: str) -> Sessions:
    return Programs(session, [sys.executable, *_DRIVER], ROOT)


def _applications(session: str) -> Sessions:
    return Programs(session, [require_program("python"), *_DRIVER], ROOT)


@contextmanager
def _page(session: str) -> Iterator[Sessions]:
    with (
        TemporaryDirectory(prefix="bench-page-") as name,
        Browser(require_browser()) as browser,
    ):
        folder = Path(name)
        shutil.copy(PROGRAMS / f"{session}.jsx", folder / "main.jsx")
        (folder / "node_modules").mkdir()
        (folder / "node_modules" / "sessions").symlink_to(_SESSIONS, target_is_directory=True)
        with PageServer(bundled(folder)) as server, Pages(browser, server.url) as pages:
            yield pages


_PROGRAMS: Final[Mapping[str, Callable[[str], AbstractContextManager[Sessions]]]] = {
    "node": _node,
    "python": _python,
    "applications": _applications,
    "page": _page,
}

_HEAD_BYTES: Final = 1_000
"""More than a head. Without TLS, Chromium takes a head that is cut off for an empty answer."""

CLIENTS: Final = (
    Client("`letta-client`, Python", "python", "letta"),
    Client("`@letta-ai/letta-client`, Node", "node", "letta"),
    Client("`openai`, Python: Responses", "python", "responses"),
    Client("`openai`, Python: Responses, helper", "python", "responses-helper"),
    Client("`openai`, Python: Chat Completions", "python", "chat", _CHAT),
    Client("`openai`, Python: Chat Completions, helper", "python", "chat-helper", _CHAT),
    Client("`openai`, Node: Responses", "node", "responses"),
    Client("`openai`, Node: Responses, helper", "node", "responses-helper"),
    Client("`openai`, Node: Chat Completions", "node", "chat", _CHAT),
    Client("`openai`, Node: Chat Completions, helper", "node", "chat-helper", _CHAT),
    Client("`openai-agents`", "applications", "agents", _AGENTS),
    Client("`ai` 5, `Chat`", "node", "ai-5", {"approval": "version 5 knows no approvals"}),
    Client("`ai` 6, `Chat`", "node", "ai-6"),
    Client("`ai` 7, `Chat`", "node", "ai-7"),
    Client("`ai` 7, `useChat`, in Chromium", "page", "use_chat", cut_from_bytes=_HEAD_BYTES),
    Client("`ai` 7, `WorkflowChatTransport`", "node", "workflow"),
    Client("`@ag-ui/client` 0.0.59", "node", "ag-ui-0", {"cancel": "no cancel in this client"}),
    Client("`@ag-ui/client` 1.0", "node", "ag-ui-1", {"cancel": "no cancel in this client"}),
    Client("`@copilotkit/core`", "node", "copilotkit"),
    Client(
        "`@durable-streams/client`",
        "node",
        "durable-streams",
        dict.fromkeys(("retry", "cancel", "approval"), ONLY_READS),
    ),
)
