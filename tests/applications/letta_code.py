"""letta-code's command line without a terminal."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.applications.programs import environment

HURRY = Path(__file__).with_name("hurry.cjs")

RUN_SECONDS = 60.0
"""Bound that keeps a hanging program from hanging the tests; it usually takes two seconds."""

Json = dict[str, Any]


@dataclass
class Answer:
    """The program's output, one JSON value a line if it streams."""

    status: int
    lines: list[Json]
    stderr: str

    @property
    def result(self) -> Json:
        """The result at the end of a successful output."""
        assert self.status == 0, f"{self.stderr}\n{self.lines}"
        result = self.lines[-1]
        assert (result["type"], result["subtype"]) == ("result", "success"), result
        return result

    @property
    def text(self) -> str:
        text: str = self.result["result"]
        return text

    @property
    def events(self) -> list[Json]:
        """The streamed events of the runs."""
        return [line for line in self.lines if line["type"] == "message"]

    @property
    def said(self) -> str:
        """The assistant's streamed text, joined."""
        said = [e["content"] for e in self.events if e["message_type"] == "assistant_message"]
        return "".join(said)


@dataclass
class LettaCode:
    """The program with its own home and working directory."""

    program: str
    directory: Path

    @contextmanager
    def start(self, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run the program, and kill it on exit."""
        home, work = self.directory / "home", self.directory / "work"
        for one in home, work:
            one.mkdir(exist_ok=True, parents=True)
        with subprocess.Popen(
            [self.program, *arguments],
            cwd=work,
            env=environment(home, url) | {"NODE_OPTIONS": f"--require={HURRY}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, url: str, *arguments: str) -> str:
        """Return its output. Fails if the program fails."""
        with self.start(url, *arguments) as process:
            out, err = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 0, err + out
        return out

    def asking(
        self, url: str, prompt: str, *arguments: str, streaming: bool = False
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """Start the program with a question; ``end`` reads the answer."""
        form = "stream-json" if streaming else "json"
        options = ("-p", prompt, "--output-format", form, "--no-system-info-reminder")
        return self.start(url, *options, *arguments)

    def ask(self, url: str, prompt: str, *arguments: str, streaming: bool = False) -> Answer:
        with self.asking(url, prompt, *arguments, streaming=streaming) as process:
            return end(process, streaming=streaming)


def read_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Read the next line of a streaming program, and nothing after it.

    A buffer would take more, which ``end`` could not see.
    """
    assert process.stdout is not None
    descriptor, line = process.stdout.fileno(), b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        assert byte, "the program has ended"
        line += byte
    found: dict[str, Any] = json.loads(line)
    return found


def end(process: subprocess.Popen[str], *, streaming: bool = False) -> Answer:
    """Wait for the program's end and return its output since the last read."""
    out, err = process.communicate(timeout=RUN_SECONDS)
    texts = out.splitlines() if streaming else [out] if out.strip() else []
    return Answer(process.returncode, [json.loads(text) for text in texts], err)
