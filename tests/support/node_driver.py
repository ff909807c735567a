"""A program in a process of its own that makes requested calls, several at a time."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from reattach.testing.closing import Closing
from tests.support.threads import WAIT_SECONDS

Json = dict[str, Any]


class Answered(Protocol):
    """A call in progress."""

    lines: queue.Queue[Json]
    """The lines that the program has printed for it, without its id."""


C = TypeVar("C", bound=Answered)


class ProgramDriver(Closing):
    """The process of a command; it reads and prints a line of JSON at a time."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._calls: list[Answered] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        self._reading.join(WAIT_SECONDS)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def begin(self, call: C, line: Json) -> C:
        """Have the call made, and return it."""
        self._calls.append(call)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": len(self._calls) - 1, **line}) + "\n")
        self._process.stdin.flush()
        return call

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            self._calls[line.pop("id")].lines.put(line)


class NodeDriver(ProgramDriver):
    """The process of ``driver.mjs`` in a folder."""

    def __init__(self, node: str, directory: Path) -> None:
        super().__init__([node, "driver.mjs"], directory)
