"""``reattach runs tail``: the events of runs, one a line."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach_here
from tests.support.runs_of_a_server import Runs
from tests.support.terminal import Terminal

UNKNOWN = "run-00000000-0000-4000-8000-000000000000"


def tail(server: ServerProcess, *arguments: str, status: int = 0) -> Ended:
    ended = reattach_here("runs", "tail", *arguments, "--url", server.url)
    assert ended.status == status, ended
    return ended


def test_the_last_events_of_an_ended_run_are_shown_and_the_command_ends(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.finish("[chunks=20]")
    lines = tail(server, run_id, "-n", "3").out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["21", "assistant"],
        ["22", "stop_reason"],
        ["23", "usage_statistics"],
    ]
    assert lines[0].split("\t")[2] == "t19 "
    assert lines[1].split("\t")[2] == "end_turn"


def test_a_cursor_shows_every_event_after_it_as_json(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.finish("[think=1][tool=x][chunks=3]")
    everything = [
        json.loads(line) for line in tail(server, run_id, "--after", "0", "--json").out.splitlines()
    ]
    assert [event["seq_id"] for event in everything] == [*range(1, len(everything) + 1)]
    assert {"tool_call_message", "tool_return_message"} <= {
        event["message_type"] for event in everything
    }


def test_tool_calls_and_line_ends_stay_on_one_line(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.finish("[tool=lookup][unicode][chunks=8]")
    shown = tail(server, run_id, "--after", "0").out
    lines = [line.split("\t") for line in shown.splitlines()]
    assert all(len(line) == 3 for line in lines)
    assert ["tool_call", "lookup"] in [line[1:] for line in lines]
    assert "tool_return" in {line[1] for line in lines}
    assert "\\n" in shown


def test_several_runs_are_tailed_together_each_line_with_its_run(
    server: ServerProcess, runs: Runs
) -> None:
    first, second = runs.finish("[chunks=2]"), runs.finish("[chunks=4]")
    lines = [line.split("\t") for line in tail(server, first, second, "-n", "4").out.splitlines()]
    of_first = [line[1] for line in lines if line[0] == first]
    of_second = [line[1] for line in lines if line[0] == second]
    assert (of_first, of_second) == ([*"2345"], [*"4567"])


@pytest.mark.parametrize("text", ["[fail=1]", "[hang=1]"])
def test_a_run_that_fails_or_is_cancelled_sets_the_status(
    server: ServerProcess, runs: Runs, text: str
) -> None:
    run_id = runs.start(text)
    if "hang" in text:
        reattach_here("runs", "cancel", run_id, "--url", server.url)
    tail(server, run_id, status=1)


def test_a_live_run_is_followed_through_a_cut_to_its_end_without_a_gap(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[chunks=100][rate=100]")
    with Relay(server.address) as relay:
        relay.cut_after(4000)
        ended = reattach_here("runs", "tail", run_id, "--after", "0", "--url", relay.url)
    assert ended.status == 0, ended
    seqs = [int(line.split("\t")[0]) for line in ended.out.splitlines()]
    assert seqs == [*range(1, 104)]


def test_ctrl_c_prints_the_command_that_goes_on(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.start("[chunks=3][hang=3]")
    with Terminal("runs", "tail", run_id, "--after", "0", "--url", server.url) as terminal:
        terminal.wait_for("t2 ")
        terminal.press("\x03")
        status = terminal.end()
    assert status == 130
    again = f"reattach runs tail {run_id} --url {server.url} --after 4"
    assert f"Detached after event 4. Attach again with: {again}" in terminal.text
    assert runs.status(run_id) == "running"


def test_lines_are_cut_to_the_width_of_the_terminal(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.finish("[chunks=1][size=300]")
    with Terminal("runs", "tail", run_id, "--url", server.url, columns=60) as terminal:
        assert terminal.end() == 0
    assert max(len(line) for line in terminal.text.splitlines()) == 60


def test_a_run_that_does_not_exist_is_named(server: ServerProcess) -> None:
    ended = tail(server, UNKNOWN, status=1)
    assert UNKNOWN in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_cursor_beyond_the_last_event_is_refused_with_the_last_one(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.finish("[chunks=2]")
    ended = tail(server, run_id, "--after", "99999", status=1)
    assert f"The run {run_id} has no event 99999: its last one is 5." in ended.err
    assert tail(server, run_id, "--after", "5").err == (
        "reattach: The run has ended, and has no event after 5.\n"
    )


def test_a_log_that_lost_its_beginning_is_shown_from_its_first_event_and_that_is_said(
    tmp_path: Path,
) -> None:
    with ServerProcess(tmp_path, arguments=["--scripted", "--log-level", "warning"]) as server:
        with httpx2.Client(base_url=server.url) as http:
            run_id = Runs(http).start("[chunks=3][hang=3]")
        server.kill()
        for file in tmp_path.glob("events.db*"):
            file.unlink()
        server.start()
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            with http.stream("GET", f"/v1/runs/{run_id}/stream") as response:
                response.read()
            first = http.get(f"/v1/runs/{run_id}/frames").json()["first_seq"]
        assert first > 3
        by_default = tail(server, run_id, status=1)
        all_events = tail(server, run_id, "--after", "0", status=1)
    for shown in (by_default, all_events):
        assert shown.out.splitlines()[0].split("\t")[0] == str(first)
        assert shown.err == (
            f"reattach: The log of {run_id} begins with event {first}: those before it are lost.\n"
        )
