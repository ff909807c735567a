"""The JavaScript client, built, and in a process that makes requested calls; see ``driver.mjs``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from reattach.testing.closing import Closing
from reattach.testing.recording import whole_frames
from tests.support.threads import WAIT_SECONDS

Json = dict[str, Any]

PACKAGE: Final = Path(__file__).parents[2] / "js"
DIRECTORY: Final = Path(__file__).parents[1] / "clients" / "javascript"
_BUILD_SECONDS: Final = 60.0


def require_client() -> str:
    """Build the client if its sources have changed, and return Node.

    If Node or the packages that build it are missing, skip the test, or fail it in CI.
    """
    node = shutil.which("node")
    if node is None or not (PACKAGE / "node_modules/esbuild").is_dir():
        why_not = (
            "The JavaScript client cannot be built: install Node 20 or newer, run scripts/setup"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(f"{why_not}; CI runs these tests")
        pytest.skip(why_not)
    # The tests run in several processes.
    with (PACKAGE / "node_modules/.built").open("a+") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        stamp.seek(0)
        digest = _digest()
        if stamp.read() != digest or not (PACKAGE / "dist/index.js").exists():
            command = [node, str(PACKAGE / "build.mjs")]
            built = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS
            )
            assert built.returncode == 0, built.stdout + built.stderr
            stamp.truncate(0)
            stamp.write(digest)
    return node


def _digest() -> str:
    sources = [PACKAGE / "build.mjs", PACKAGE / "tsconfig.json", *sorted(PACKAGE.glob("src/*.ts"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def events_of(frames: bytes) -> list[Json]:
    """Return the events of frames as a client of JSON sees them."""
    lines = (line for frame in whole_frames(frames) for line in frame.split(b"\n"))
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data")]


@dataclass
class Call:
    """A call in progress: its events and states so far."""

    otid: str = ""
    events: list[Json] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    value: Any = None
    error: Json | None = None
    lines: queue.Queue[Json] = field(default_factory=queue.Queue)

    def finish(self, on_event: Callable[[Json], object] = lambda event: None) -> Call:
        """Wait until the call has ended, and pass on each event as it arrives."""
        while (line := self.lines.get(timeout=WAIT_SECONDS)) != {}:
            if "event" in line:
                self.events.append(line["event"])
                on_event(line["event"])
            elif "state" in line:
                self.states.append(line["state"])
            else:
                for name, value in line.items():
                    setattr(self, name, value)
        return self

    @property
    def run_id(self) -> str:
        run_id: str = self.events[0]["run_id"]
        return run_id


class JavaScript(Closing):
    """The process, which makes concurrent calls."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(
            [node, "driver.mjs"],
            cwd=DIRECTORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._calls: list[Call] = []
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

    def start(self, url: str, method: str, *args: Any, **options: Any) -> Call:
        """Call a method of a new client with these options."""
        call = Call()
        self._calls.append(call)
        line = {
            "id": len(self._calls) - 1,
            "options": {"url": url, **options},
            "method": method,
            "args": args,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return call

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            self._calls[line.pop("id")].lines.put(line)
