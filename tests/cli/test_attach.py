"""``reattach attach``: how it reports trouble, and how it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from reattach.cli.following import Reporter
from reattach.client import Takeover
from reattach.testing.programs.server import ServerProcess
from tests.support.commands import BOUND_SECONDS, reattach_here

NOWHERE = "http://127.0.0.1:1"
HEEDING_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("reattach", run_name="__main__")
"""
"""The program, also where a shell started the tests in the background, which ignores Ctrl-C."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(data_dir, arguments=["--scripted", "--log-level", "warning"]) as server:
        yield server


@contextmanager
def attached(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``reattach attach`` as a process that is still running."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REATTACH_")}
    with subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, "attach", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def begun(server: ServerProcess, text: str) -> str:
    """The conversation of a run that has begun."""
    with httpx2.Client(base_url=server.url) as http:
        agent = http.post("/v1/agents/", json={"name": "a", "model": "scripted/echo"}).json()
        created = http.post("/v1/conversations/", params={"agent_id": agent["id"]}, json={})
        conversation_id: str = created.json()["id"]
        sent = {"input": text, "background": True, "stream_tokens": True}
        path = f"/v1/conversations/{conversation_id}/messages"
        with http.stream("POST", path, json=sent) as response:
            next(response.iter_lines())
    return conversation_id


def test_a_server_that_cannot_be_reached_is_named_with_the_cause_while_trying_again() -> None:
    """E9: an unreachable server is reported after a second, not after 120 s of silence."""
    with attached("--url", NOWHERE, "--otid", "key 1", "--after", "7") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        if "Connecting" in said:  # It took longer than a second to find out.
            said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=BOUND_SECONDS)
    assert f"No connection to {NOWHERE}: connection refused. Retrying for up to" in said
    again = f"reattach attach default --otid 'key 1' --url {NOWHERE} --after 7"
    assert f"Detached after event 7. Attach again with: {again}" in rest
    assert process.returncode == 130


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8283", "ftp://localhost", "http://", "http://[::1", "http://a b", "http://a:99999"],
)
def test_a_malformed_url_is_refused_in_one_line(url: str) -> None:
    """E9."""
    ended = reattach_here("attach", "--url", url)
    assert ended.status == 1
    assert ended.err == (
        f"reattach: '{url}' is not the URL of a server. "
        "Write it with its scheme, such as http://localhost:8283.\n"
    )


def test_a_refusal_is_one_line_in_the_words_of_the_server(server: ServerProcess) -> None:
    """E9: no raw JSON."""
    ended = reattach_here("attach", "--otid", "never-sent", "--url", server.url)
    assert ended.status == 1
    assert "No run found for otid=never-sent" in ended.err.splitlines()[-1]
    assert "{" not in ended.err


def test_a_url_with_a_path_too_much_is_named(server: ServerProcess) -> None:
    """E9: a wrong path is not reported as a bare "Not Found"."""
    ended = reattach_here("attach", "--otid", "key", "--url", f"{server.url}/api")
    assert ended.status == 1
    assert f"{server.url}/api answered 404 Not Found. Check the host, and the path" in ended.err


def test_a_reader_that_closes_its_pipe_ends_the_command_quietly(server: ServerProcess) -> None:
    """E9: `reattach attach | head -1` leaves no traceback."""
    conversation_id = begun(server, "[chunks=20000][rate=200]")
    with attached(conversation_id, "--url", server.url) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=BOUND_SECONDS) != 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_an_outage_that_lasts_is_reported_and_so_is_its_end(tmp_path: Path) -> None:
    """E9: the answer outlasts the outage however slow the machine is, and is then cancelled."""
    with ServerProcess(tmp_path, arguments=["--scripted", "--log-level", "warning"]) as server:
        conversation_id = begun(server, "[chunks=1000][rate=2]")
        with attached(conversation_id, "--url", server.url) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(3) == "t0 "
            server.kill()
            lost = process.stderr.readline() + process.stderr.readline()
            server.start()
            found = ""
            while "goes on" not in found and (line := process.stderr.readline()):
                found += line
            cancel = f"{server.url}/v1/conversations/{conversation_id}/cancel"
            httpx2.post(cancel).raise_for_status()
            _, rest = process.communicate(timeout=BOUND_SECONDS)
    assert f"No connection to {server.url}: connection refused. Retrying for up to" in lost
    assert re.search(r"Attached after \d+\.\d s, at event \d+\.", found)
    assert re.search(
        r"The server was restarted; the answer goes on after \d+\.\d s, at event \d+\.", found
    )
    assert "[cancelled]" in rest
    assert "stream_incomplete" not in found + rest


@pytest.mark.parametrize(
    ("takeover", "said"),
    [
        (Takeover("crash", True, 12, 2.06), "The server was restarted"),
        (Takeover("handover", True, 12, 2.06), "The server was restarted"),
        (
            Takeover("handover", False, 12, 2.06),
            "The server's process was stopped and handed the answer over",
        ),
        (
            Takeover("crash", False, 12, 2.06),
            "The server's process failed, and another one took the answer over",
        ),
    ],
)
def test_only_a_server_that_refused_connections_is_said_to_have_been_restarted(
    capsys: pytest.CaptureFixture[str], takeover: Takeover, said: str
) -> None:
    reporter = Reporter(NOWHERE, 0, [])
    reporter.cursor = takeover.cursor
    reporter.taken_over(takeover)
    shown = capsys.readouterr()
    assert shown.err == f"\nreattach: {said}; the answer goes on after 2.1 s, at event 12.\n"
    assert shown.out == ""


@pytest.mark.parametrize("key", ["rk_ünicode", "rk_secret\nx", "a b"])
def test_a_malformed_key_is_refused_at_once_and_not_shown(key: str) -> None:
    """E9."""
    ended = reattach_here("attach", "--url", NOWHERE, REATTACH_API_KEY=key)
    assert ended.status == 1
    assert ended.err.startswith("reattach: The API key has a character that no key has")
    assert key not in ended.err


@pytest.mark.parametrize(("text", "status"), [("[fail=1]", 1), ("a word", 0)])
def test_the_exit_status_says_whether_the_run_failed(
    server: ServerProcess, text: str, status: int
) -> None:
    """E9: scripts notice a run that failed."""
    conversation_id = begun(server, text)
    with httpx2.Client(base_url=server.url) as http:
        [run] = http.get("/v1/runs/", params={"conversation_id": conversation_id}).json()
    ended = reattach_here("attach", "--run-id", run["id"], "--url", server.url)
    assert ended.status == status, ended.err


def test_control_characters_of_an_answer_are_shown_as_escapes_and_line_ends_as_they_are(
    server: ServerProcess,
) -> None:
    """An answer must not rename the window, move the cursor, or write into the clipboard."""
    conversation_id = begun(server, "\x1b]0;renamed\x07\x9b2J\r\tnext\nline")
    with httpx2.Client(base_url=server.url) as http:
        [run] = http.get("/v1/runs/", params={"conversation_id": conversation_id}).json()
    ended = reattach_here("attach", "--run-id", run["id"], "--url", server.url)
    assert "\\x1b]0;renamed\\x07\\x9b2J\\r\tnext\nline" in ended.out
    assert not {"\x1b", "\x07", "\x9b", "\r"} & {*ended.out, *ended.err}


def test_the_id_of_a_run_as_a_conversation_names_the_commands_that_take_it() -> None:
    run_id = "run-00000000-0000-4000-8000-000000000000"
    ended = reattach_here("attach", run_id, "--url", NOWHERE)
    assert ended.status == 1
    assert f"`reattach attach --run-id {run_id}`" in ended.err
    assert f"`reattach runs tail {run_id}`" in ended.err


def test_programs_get_each_event_once_as_a_line_of_json(server: ServerProcess) -> None:
    conversation_id = begun(server, "[chunks=4]")
    with httpx2.Client(base_url=server.url) as http:
        [run] = http.get("/v1/runs/", params={"conversation_id": conversation_id}).json()
    ended = reattach_here("attach", "--run-id", run["id"], "--json", "--url", server.url)
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["seq_id"] for event in events] == [*range(1, 8)]
    assert ended.err == ""
