"""letta-code has a turn while its server is killed, and the next one is stopped."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.applications.letta_code import LettaCode, end, read_line
from tests.applications.programs import assert_kept, require_program
from tests.clients.conftest import SCRIPTED, scripted_server
from tests.support.inheriting_server import InheritingServer, wait_for_client
from tests.support.threads import WAIT_SECONDS, Thread, Threads, raw_client

CHUNKS = 60
ENVIRONMENT = SCRIPTED | {"REATTACH_DRAIN_SECONDS": "0.1"}


class Output:
    """The lines that the program has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []

    def read_some_text(self) -> None:
        """Read until the next pieces of the answer's text."""
        for _ in range(3):
            while True:
                self.lines.append(read_line(self._process))
                if self.lines[-1].get("message_type") == "assistant_message":
                    break


@pytest.mark.promise("P1", "P4", "P15", "P19")
def test_a_turn_is_whole_though_its_server_is_killed_and_the_next_one_is_stopped(
    tmp_path: Path,
) -> None:
    """After the second interruption, a held socket keeps it waiting instead of refusing it."""
    program = LettaCode(require_program("letta"), tmp_path / "letta-code")
    data = tmp_path / "data"
    with scripted_server(data, **ENVIRONMENT) as server, raw_client(server.url) as raw:
        agent_id = Threads(raw).default_thread().agent_id
        asking = ("--agent", agent_id, "--new")
        with program.asking(
            server.url, f"[chunks={CHUNKS}][rate=10]", *asking, streaming=True
        ) as process:
            output = Output(process)
            output.read_some_text()
            server.kill()
            server.start()
            output.read_some_text()
            assert server.stop() == 0
            with socket.create_server(server.address) as listener:
                wait_for_client(listener, WAIT_SECONDS)
                with InheritingServer(data, listener, environment=ENVIRONMENT):
                    answer = end(process, streaming=True)
                    answer.lines[:0] = output.lines
                    thread = Thread(raw, agent_id, answer.result["conversation_id"])
                    [run] = thread.runs()
                    assert_kept(thread, answer.text)

    assert answer.text == answer.said == "".join(f"t{n} " for n in range(CHUNKS))
    seqs = [event["seq_id"] for event in answer.events]
    assert seqs == list(range(2, CHUNKS + 4))  # a ping is 1
    attempts = [one["interruption"] for one in run["metadata"]["attempts"]]
    assert attempts == [None, "crash", "handover"]
