"""``reattach runs show``: everything that a server knows of one run."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach_here
from tests.support.runs_of_a_server import Runs

UNKNOWN = "run-00000000-0000-4000-8000-000000000000"


def shown(server: ServerProcess, *arguments: str, status: int = 0) -> Ended:
    ended = reattach_here("runs", "show", *arguments, "--url", server.url)
    assert ended.status == status, ended
    return ended


def facts_of(text: str) -> dict[str, str]:
    """Return the lines at the top by their labels."""
    lines = text.partition("\n\n")[0].splitlines()
    return {line[:14].strip(): line[14:] for line in lines}


def rows_of(text: str, title: str) -> list[list[str]]:
    """Return the rows of a section."""
    _, _, rest = text.partition(f"\n{title}\n")
    return [line.split("\t") for line in rest.partition("\n\n")[0].splitlines()]


def test_an_ended_run_is_shown_with_its_attempt_steps_and_tool_calls(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.finish("[tool=ferry_times][chunks=4] to the island")
    text = shown(server, run_id).out
    facts = facts_of(text)
    assert facts["run"] == run_id
    assert facts["status"] == "completed, end_turn"
    assert facts["agent"] == f"{runs.agent_id} (guide)"
    assert facts["model"] == "scripted/echo"
    assert "completion tokens" in facts["usage"]
    assert facts["input"] == "[tool=ferry_times][chunks=4] to the island"
    assert "log closed" in facts["events"]
    [attempt] = rows_of(text, "ATTEMPTS")
    assert attempt[0] == "1"
    assert len(rows_of(text, "STEPS")) == 2
    [call] = rows_of(text, "TOOL CALLS")
    assert call[:2] == ["ferry_times", "success"]
    assert "Nobody reads this run at present." in text


def test_a_reader_of_an_open_run_is_shown_with_its_program_and_position(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[chunks=3][hang=3]")
    stream = f"/v1/runs/{run_id}/stream"
    headers = {"user-agent": "island-app/2.0"}
    with (
        httpx2.Client(base_url=server.url, headers=headers) as http,
        http.stream("POST", stream, json={"starting_after": 0}) as response,
    ):
        lines = response.iter_lines()
        while "t2 " not in next(lines):
            pass
        text = shown(server, run_id).out
    assert facts_of(text)["status"] == "running"
    # The stream of the send, which has just been left, may still be there.
    [reader] = [row for row in rows_of(text, "READERS") if row[0] == "island-app/2.0"]
    assert reader[1] == "post"
    assert reader[2:4] == ["4", "0"]


def test_the_error_of_a_failed_run_and_a_request_to_cancel_are_shown(
    server: ServerProcess, runs: Runs
) -> None:
    failed, cancelled = runs.finish("[fail=1]"), runs.start("[hang=1]")
    assert "error" in facts_of(shown(server, failed).out)
    reattach_here("runs", "cancel", cancelled, "--url", server.url)
    facts = facts_of(shown(server, cancelled).out)
    assert facts["status"].startswith("cancelled")
    assert facts["cancel"].startswith("requested at 2")


def test_a_reader_that_was_cut_off_is_shown_with_the_reason(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[hang=1]")
    issued = reattach_here("tokens", "issue", "--run-id", run_id, "--json", "--url", server.url)
    token = json.loads(issued.out)
    headers = {"authorization": f"Bearer {token['token']}", "user-agent": "island-app/2.0"}
    with (
        httpx2.Client(base_url=server.url, headers=headers) as http,
        http.stream("GET", f"/v1/runs/{run_id}/stream") as response,
    ):
        assert response.status_code == 200
        reattach_here("tokens", "revoke", token["id"], "--url", server.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            response.read()
    [cut] = rows_of(shown(server, run_id).out, "CUT OFF")
    assert cut[1:4] == ["revoked", "island-app/2.0", "get"]


def test_an_interrupted_run_is_shown_with_both_attempts(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, arguments=["--scripted", "--log-level", "warning"]) as server:
        with httpx2.Client(base_url=server.url) as http:
            run_id = Runs(http).start("[chunks=60][rate=30]")
        server.kill()
        server.start()
        tailed = reattach_here("runs", "tail", run_id, "--url", server.url)
        assert tailed.status == 0, tailed.err
        first, second = rows_of(shown(server, run_id).out, "ATTEMPTS")
    assert (first[0], first[1], first[-1]) == ("1", "begin", "-")
    assert (second[0], second[-1]) == ("2", "crash")
    assert first[2] != second[2]


def test_the_json_is_that_of_the_server(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.finish("word")
    found = json.loads(shown(server, run_id, "--json").out)
    assert (found["id"], found["status"]) == (run_id, "completed")
    assert len(found["attempt_list"]) == 1


def test_a_run_that_does_not_exist_is_named_in_one_line(server: ServerProcess) -> None:
    ended = shown(server, UNKNOWN, status=1)
    assert UNKNOWN in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""
