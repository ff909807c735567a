"""The application that the page on embedding describes is killed or stopped in mid-answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.docs.test_docs import ROOT, all_blocks
from tests.support.threads import WAIT_SECONDS

TEXT = "".join(f"{number} " for number in range(50))
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["reattach.embed", "uvicorn"])  # To import them takes seconds.


def documented_application() -> str:
    """Return the first program of the page with the function that continues its text."""
    application, *others = all_blocks(ROOT / "docs" / "embed.md", "python")
    [continuing] = [block for block in others if "continues=True" in block]
    used = application.replace("Reattach(answer, ", "Reattach(engine, ")
    assert used != application
    return f"{continuing}\n{used}"


def serve(program: Path, listener: socket.socket) -> None:
    """Serve the program's application in this process until a signal."""
    os.chdir(program.parent)
    os.environ["REATTACH_DRAIN_SECONDS"] = "0.1"
    app = runpy.run_path(str(program))["app"]
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listener])


@contextmanager
def served(program: Path, listener: socket.socket) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run the application in a fork, and kill it on exit."""
    process = FORKS.Process(target=serve, args=(program, listener))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(WAIT_SECONDS)


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
    program = tmp_path / "application.py"
    program.write_text(documented_application())
    question = {"text": "Count.", "otid": "mine"}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        httpx.Client(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=WAIT_SECONDS
        ) as http,
    ):
        reader = Reader(http)
        with served(program, listener) as process:
            pid = process.pid
            assert pid is not None

            def interrupt() -> None:
                if reader.seqs[-1] == 3:
                    os.kill(pid, number)

            reader.read("POST", "/ask", interrupt, json=question)
            process.join(WAIT_SECONDS)
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
