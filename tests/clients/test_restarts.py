"""The server dies or is stopped in mid-answer, and the official SDKs get the whole answer."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import SCRIPTED, scripted_server
from tests.support.inheriting_server import InheritingServer, wait_for_client
from tests.support.python_sdk import Reader
from tests.support.threads import (
    WAIT_SECONDS,
    Thread,
    Threads,
    assert_one_whole_run,
    raw_client,
)
from tests.support.typescript_sdk import TypeScript, TypeScriptReader, require_node

CHUNKS = 50
ANSWER = f"[chunks={CHUNKS}][rate=20]"
TEXT = "".join(f"t{n} " for n in range(CHUNKS))
RETRIES = 10
"""Retries of the SDK while no server listens, as the documentation advises."""
MOST_RESUMES = 3
"""A server that is being stopped may still accept one."""
ENVIRONMENT = SCRIPTED | {"REATTACH_DRAIN_SECONDS": "0.1"}


@dataclass
class User:
    """A program that reads an answer with an SDK, and resumes after each break."""

    reader: Reader | TypeScriptReader
    thread: Thread
    in_mid_answer: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Send, and read to the end of the answer."""
        self._read(lambda: self.reader.send(self.thread, ANSWER))
        for _ in range(MOST_RESUMES):
            if self.reader.complete:
                break
            self._read(lambda: self.reader.resume(self.thread))

    def _read(self, opening: Callable[[], Any]) -> None:
        def look(chunk: Any) -> None:
            if chunk.seq_id == 4:
                self.in_mid_answer.set()

        if isinstance(self.reader, Reader):
            self.reader.read(opening, look)
        else:
            self.reader.read(opening(), look)

    def assert_whole(self, interruption: str) -> None:
        """Assert that the answer is whole, and is that of one interrupted run."""
        reader, thread = self.reader, self.thread
        assert reader.complete, reader.broken
        assert reader.text == TEXT == thread.text()
        assert reader.joined == thread.replay(reader.run_id)
        assert_one_whole_run(reader.joined)
        [run] = thread.runs()
        assert run["status"] == "completed"
        [_, attempt] = run["metadata"]["attempts"]
        assert attempt["interruption"] == interruption


@pytest.fixture(scope="module")
def typescript() -> Iterator[TypeScript]:
    with TypeScript(require_node()) as process:
        yield process


@pytest.mark.promise("P1", "P4", "P15", "P19")
@pytest.mark.parametrize("held", [False, True], ids=["own-port", "held-socket"])
@pytest.mark.parametrize(
    ("number", "interruption"),
    [
        pytest.param(signal.SIGKILL, "crash", id="killed"),
        pytest.param(signal.SIGTERM, "handover", id="stopped"),
    ],
)
def test_the_sdks_get_the_whole_answer_though_the_server_restarts_in_the_middle(
    *, held: bool, number: int, interruption: str, typescript: TypeScript, tmp_path: Path
) -> None:
    """With a held socket the SDKs need no retries, because no connection is refused."""
    with ExitStack() as stack:
        server: ServerProcess
        if held:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = InheritingServer(tmp_path, listener, environment=ENVIRONMENT)
        else:
            server = scripted_server(tmp_path, **ENVIRONMENT)
        stack.enter_context(server)
        raw = stack.enter_context(raw_client(server.url))
        retries = 0 if held else RETRIES
        python = stack.enter_context(Reader(server.url, max_retries=retries))
        users = [
            User(python, Threads(raw).conversation()),
            User(
                TypeScriptReader(typescript, server.url, max_retries=retries),
                Threads(raw).conversation(),
            ),
        ]
        executor = stack.enter_context(ThreadPoolExecutor(len(users)))
        reading: list[Future[None]] = [executor.submit(user.read) for user in users]
        for user in users:
            assert user.in_mid_answer.wait(WAIT_SECONDS)
        server.signal(number)
        server.wait()
        if held:
            wait_for_client(listener, WAIT_SECONDS)
        server.start()
        for one, user in zip(reading, users, strict=True):
            one.result(WAIT_SECONDS)
            user.assert_whole(interruption)
