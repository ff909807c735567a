"""The official TypeScript SDK in a process that makes requested calls; see ``driver.mjs``."""

from __future__ import annotations

import base64
import queue
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from reattach.testing.recording import frames_to
from tests.support.missing import skip_or_fail
from tests.support.node_driver import Json, NodeDriver
from tests.support.python_sdk import Seen, Stop
from tests.support.threads import WAIT_SECONDS, Thread

DIRECTORY = Path(__file__).parents[1] / "clients" / "typescript"


def node_or_why_not(directory: Path = DIRECTORY) -> tuple[str, str]:
    """Return the program, or an empty text and the reason why it is not usable."""
    node = shutil.which("node")
    if node is None:
        return "", "Node is not installed: the TypeScript SDK needs version 18 or newer"
    asked = subprocess.run(
        [node, "--version"], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )
    version = asked.stdout.strip()
    if asked.returncode or int(version.removeprefix("v").partition(".")[0]) < 18:
        return "", f"Node is {version or 'broken'}: the TypeScript SDK needs 18 or newer"
    if not (directory / "node_modules/@letta-ai/letta-client").is_dir():
        return "", "The TypeScript SDK is not installed: run scripts/setup"
    return node, ""


def require_node(directory: Path = DIRECTORY) -> str:
    """Return the program. If it is missing, skip the test, or fail it in CI."""
    node, why_not = node_or_why_not(directory)
    if not node:
        skip_or_fail(why_not)
    return node


@dataclass
class Outcome:
    """The result of a call of the SDK."""

    chunks: list[Json] = field(default_factory=list)
    value: Any = None
    error: Json | None = None
    requests: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def refused(self) -> Json:
        """The error. Fails if the call had a result."""
        assert self.error is not None
        assert self.chunks == []
        return self.error


class Call:
    """A call in progress."""

    def __init__(self) -> None:
        self.lines: queue.Queue[Json] = queue.Queue()

    def finish(self, on_chunk: Callable[[Json], object] = lambda chunk: None) -> Outcome:
        """Wait until the program ends, and pass on each chunk as it arrives."""
        outcome = Outcome()
        while True:
            line = self.lines.get(timeout=WAIT_SECONDS)
            if "chunk" in line:
                outcome.chunks.append(line["chunk"])
                on_chunk(line["chunk"])
            elif "value" in line:
                outcome.value = line["value"]
            elif "error" in line:
                outcome.error = line["error"]
            else:
                outcome.requests = line["end"]["requests"]
                outcome.headers = line["end"]["headers"]
                outcome.body = base64.b64decode(line["end"]["body"])
                return outcome


class TypeScript(NodeDriver):
    """The process, which makes concurrent calls."""

    def __init__(self, node: str) -> None:
        super().__init__(node, DIRECTORY)

    def start(self, client: Json, path: str, *args: Any, iterate: bool) -> Call:
        line = {"client": client, "path": path.split("."), "args": args, "iterate": iterate}
        return self.begin(Call(), line)


class TypeScriptReader(Seen):
    """A client of the SDK, with the chunks of its streams and the bytes on the wire."""

    def __init__(
        self, process: TypeScript, url: str, *, max_retries: int = 0, api_key: str | None = None
    ) -> None:
        super().__init__()
        self._process = process
        self._client = {"baseURL": url, "apiKey": api_key, "maxRetries": max_retries}

    def call(self, path: str, *args: Any) -> Outcome:
        """Call a method that returns a value."""
        return self._process.start(self._client, path, *args, iterate=False).finish()

    def iterate(self, path: str, *args: Any) -> Outcome:
        """Call a method that returns a stream or pager, and read all of it."""
        return self.start(path, *args).finish()

    def start(self, path: str, *args: Any) -> Call:
        return self._process.start(self._client, path, *args, iterate=True)

    def send(self, thread: Thread, text: str, **options: Any) -> Call:
        """Send in the background, with the thread's OTID, by tokens."""
        body = {"background": True, "stream_tokens": True, "agent_id": thread.agent_id} | options
        body["messages"] = [thread.message(text)]
        return self.start("conversations.messages.create", thread.path_id, body)

    def resume(self, thread: Thread, **options: Any) -> Call:
        """Resume by run id from where the reader is."""
        body = {"run_id": self.run_id, "starting_after": self.cursor} | options
        return self.start("conversations.messages.stream", thread.path_id, body)

    def read(self, call: Call, on_chunk: Stop = lambda chunk: None) -> Outcome:
        """Read until the stream's end, its error, or its break."""
        before = self.cursor
        self.complete = False
        self.broken = None

        def take(chunk: Json) -> None:
            seen = SimpleNamespace(**chunk)
            self.take(seen)
            on_chunk(seen)

        outcome = call.finish(take)
        if outcome.error is None:
            self.complete = True
        elif outcome.error["status"] is None and outcome.error["body"] is not None:
            assert outcome.error["body"]["seq_id"] == self.cursor + 1
            self.cursor += 1
        else:
            self.broken = ConnectionError(outcome.error["message"])
        self.pieces.append(frames_to(outcome.body, self.cursor, after=before))
        return outcome
