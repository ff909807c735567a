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
ENVIRONMENT = SCRIPTED | {"REATTACH_DRAIN_SECONDS": "0.1"}

INTERRUPTIONS = [
    pytest.param(signal.SIGKILL, "crash", id="killed"),
    pytest.param(signal.SIGTERM, "handover", id="stopped"),
]


@dataclass
class User:
    """A program that reads an answer with an SDK, and resumes once its server is gone."""

    reader: Reader | TypeScriptReader
    thread: Thread
    server_is_gone: threading.Event
    in_mid_answer: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Send, and read to the end of the answer."""
        self._read(lambda: self.reader.send(self.thread, ANSWER))
        assert self.reader.broken is not None
        assert self.server_is_gone.wait(WAIT_SECONDS)
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
        assert_one_interrupted_run(thread, interruption)


def assert_one_interrupted_run(thread: Thread, interruption: str) -> None:
    """Assert that the thread has one run, which was interrupted once and completed."""
    [run] = thread.runs()
    assert run["status"] == "completed"
    [_, attempt] = run["metadata"]["attempts"]
    assert attempt["interruption"] == interruption


def send_in_json_mode(reader: Reader, thread: Thread) -> Any:
    """Send, and return the whole answer."""
    return reader.sdk.agents.messages.create(thread.agent_id, messages=[thread.message(ANSWER)])


@pytest.fixture(scope="module")
def typescript() -> Iterator[TypeScript]:
    with TypeScript(require_node()) as process:
        yield process


@pytest.mark.promise("P1", "P4", "P15", "P19")
@pytest.mark.parametrize(
    ("number", "interruption", "held"),
    [
        pytest.param(signal.SIGKILL, "crash", True, id="killed-held-socket"),
        pytest.param(signal.SIGTERM, "handover", False, id="stopped-own-port"),
    ],
)
def test_the_sdks_get_the_whole_answer_though_the_server_restarts_in_the_middle(
    *, number: int, interruption: str, held: bool, typescript: TypeScript, tmp_path: Path
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
        other = TypeScriptReader(typescript, server.url, max_retries=retries)
        gone = threading.Event()
        users = [User(one, Threads(raw).conversation(), gone) for one in (python, other)]
        executor = stack.enter_context(ThreadPoolExecutor(len(users)))
        reading: list[Future[None]] = [executor.submit(user.read) for user in users]
        for user in users:
            assert user.in_mid_answer.wait(WAIT_SECONDS)
        server.signal(number)
        server.wait()
        gone.set()
        if held:
            wait_for_client(listener, WAIT_SECONDS)
        server.start()
        for one, user in zip(reading, users, strict=True):
            one.result(WAIT_SECONDS)
            user.assert_whole(interruption)


@pytest.mark.promise("P9", "P15", "P19")
@pytest.mark.parametrize(("number", "interruption"), INTERRUPTIONS)
def test_senders_whose_request_broke_get_the_answer_of_one_run_by_sending_again(
    number: int, interruption: str, tmp_path: Path
) -> None:
    """The SDK repeats a request without a response by itself, and a user repeats a stream."""
    with ExitStack() as stack:
        server = stack.enter_context(scripted_server(tmp_path, **ENVIRONMENT))
        raw = stack.enter_context(raw_client(server.url))
        whole, streamed = Threads(raw).default_thread(), Threads(raw).conversation()
        sender, reader, again = (
            stack.enter_context(Reader(server.url, max_retries=RETRIES)) for _ in range(3)
        )
        executor = stack.enter_context(ThreadPoolExecutor(1))
        answering = executor.submit(send_in_json_mode, sender, whole)

        def interrupt(chunk: Any) -> None:
            if chunk.seq_id == 4:
                assert [run["status"] for run in whole.runs()] == ["running"]
                server.signal(number)

        reader.read(lambda: reader.send(streamed, ANSWER, background=False), interrupt)
        assert reader.broken is not None
        server.wait()
        server.start()
        again.read(lambda: again.send(streamed, ANSWER, background=False))

        assert again.complete
        assert again.text == TEXT == streamed.text()
        assert again.joined.startswith(reader.joined)
        answer = answering.result(WAIT_SECONDS)
        assert "".join(one.content for one in answer.messages) == TEXT == whole.text()
        for thread in whole, streamed:
            assert_one_interrupted_run(thread, interruption)
