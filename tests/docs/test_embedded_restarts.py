"""The application that the page on embedding describes is killed or stopped in mid-answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.test_docs import ROOT, all_blocks
from tests.support.forking import FORKING, ForkedProcess
from tests.support.threads import WAIT_SECONDS

TEXT = "".join(f"{number} " for number in range(50))
SERVE = """
import os, runpy, socket, sys
import uvicorn

os.environ["REATTACH_DRAIN_SECONDS"] = "0.1"
app = runpy.run_path("application.py")["app"]
listener = socket.socket(fileno=int(sys.argv[1]))
uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])
"""
"""A program that serves the application in its folder until a signal."""


def documented_application() -> str:
    """Return the first program of the page with the function that continues its text."""
    application, *others = all_blocks(ROOT / "docs" / "embed.md", "python")
    [continuing] = [block for block in others if "continues=True" in block]
    used = application.replace("Reattach(answer, ", "Reattach(engine, ")
    assert used != application
    return f"{continuing}\n{used}"


Process = subprocess.Popen[str] | ForkedProcess


@contextmanager
def served(program: Path, listener: socket.socket) -> Iterator[Process]:
    """Run a program that serves, and kill it on exit."""
    process: Process
    if FORKING.can_start(os.environ):
        process = FORKING.start(
            [str(listener.fileno())],
            os.environ,
            [listener.fileno()],
            program=program,
            cwd=program.parent,
        )
    else:
        process = subprocess.Popen(
            [sys.executable, str(program), str(listener.fileno())],
            cwd=program.parent,
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Reader:
    """A client of the application's two routes."""

    http: httpx.Client
    run_id: str = ""
    seqs: list[int] = field(default_factory=list)
    text: str = ""
    done: bool = False

    def read(
        self, method: str, path: str, look: Callable[[], object] = lambda: None, **more: Any
    ) -> None:
        """Read a stream until it ends or breaks. ``look`` is called after each event."""
        with (
            suppress(httpx.RemoteProtocolError, httpx.ReadError),
            self.http.stream(method, path, **more) as response,
        ):
            assert response.status_code == 200
            self.run_id = response.headers["x-run-id"]
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    self.done = True
                elif data.startswith("{"):
                    self._take(json.loads(data))
                    look()

    def _take(self, event: dict[str, Any]) -> None:
        if event["message_type"] == "ping":
            return
        self.seqs.append(event["seq_id"])
        if event["message_type"] == "assistant_message":
            self.text += event["content"]


@pytest.mark.promise("P4", "P9", "P19")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_documented_application_goes_on_with_its_answer_after_a_restart(
    number: int, tmp_path: Path
) -> None:
    (tmp_path / "application.py").write_text(documented_application())
    program = tmp_path / "serve.py"
    program.write_text(SERVE)
    question = {"text": "Count.", "otid": "mine"}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        httpx.Client(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=WAIT_SECONDS
        ) as http,
    ):
        reader = Reader(http)
        with served(program, listener) as process:

            def interrupt() -> None:
                if reader.seqs[-1] == 3:
                    process.send_signal(number)

            reader.read("POST", "/ask", interrupt, json=question)
            process.wait(WAIT_SECONDS)
        assert reader.text != TEXT
        with served(program, listener):
            params = {"starting_after": reader.seqs[-1]}
            reader.read("GET", f"/runs/{reader.run_id}", params=params)
            again = Reader(http)
            again.read("POST", "/ask", json=question)

    assert reader.done
    assert reader.text == TEXT
    assert reader.seqs == list(range(1, len(reader.seqs) + 1))
    assert (again.run_id, again.text, again.seqs) == (reader.run_id, reader.text, reader.seqs)
