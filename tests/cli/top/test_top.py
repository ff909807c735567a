"""``reattach top`` on a terminal, as lines, and as JSON, with a real server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import reattach_here
from tests.support.runs_of_a_server import Runs
from tests.support.terminal import Terminal

LEAVES_SCREEN = b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"
COLOUR = b"\x1b[32m"
QUIET = ("--scripted", "--log-level", "warning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(data_dir, arguments=[*QUIET]) as server:
        yield server


@pytest.fixture
def runs(server: ServerProcess) -> Iterator[Runs]:
    with httpx2.Client(base_url=server.url) as http:
        runs = Runs(http)
        yield runs
        runs.cancel_all()


def test_one_sample_as_json_has_processes_open_runs_and_totals(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[chunks=3][hang=3]")
    runs.finish("word")
    ended = reattach_here("top", "--once", "--json", "--url", server.url)
    assert ended.status == 0, ended.err
    [line] = ended.out.splitlines()
    sample = json.loads(line)
    assert (sample["open_runs"], len(sample["processes"])) == (1, 1)
    assert [run["id"] for run in sample["runs"]] == [run_id]
    assert sample["at"].endswith("Z")


def test_without_a_terminal_it_prints_lines(server: ServerProcess, runs: Runs) -> None:
    run_id = runs.start("[hang=1]")
    ended = reattach_here("top", "--once", "--url", server.url)
    lines = [line.split("\t") for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == ["total", "process", "run"]
    assert lines[0][2:4] == ["1 process", "1 run"]
    assert lines[2][1:3] == [run_id, "running"]


def test_the_table_is_sorted_filtered_and_left_as_keys_ask(
    server: ServerProcess, runs: Runs
) -> None:
    first, second = runs.start("[hang=1]"), runs.start("[chunks=50][hang=50]")
    with Terminal("top", "--url", server.url) as terminal:
        terminal.wait_for("by rate ▼")
        terminal.press("s")
        shown = terminal.wait_for("by events ▼")
        assert shown.index(second) < shown.index(first)
        terminal.press("r")
        shown = terminal.wait_for("by events ▲")
        assert shown.index(first) < shown.index(second)
        terminal.press(f"/{first}\r")
        shown = terminal.wait_for(f"filter '{first}'")
        assert "1-1 of 1" in shown
        terminal.press("q")
        assert terminal.end() == 0
    assert LEAVES_SCREEN in terminal.output
    assert terminal.output.rindex(SHOWS_CURSOR) > 0


def test_a_run_begins_moves_and_ends_before_the_eyes(server: ServerProcess, runs: Runs) -> None:
    with Terminal("top", "--url", server.url) as terminal:
        terminal.wait_for("No run is open.")
        run_id = runs.start("[chunks=2000][rate=100]")
        terminal.wait_for(run_id)
        terminal.press("\x1b[Bx")
        terminal.wait_for(f"Cancel {run_id}? y/n")
        terminal.press("y")
        terminal.wait_for(f"{run_id}: cancelled")
        terminal.wait_for("No run is open.")
        terminal.press("\x03")
        assert terminal.end() == 0
    assert runs.status(run_id) == "cancelled"


def test_a_change_of_the_size_draws_anew_and_a_narrow_terminal_keeps_the_ids(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[hang=1]")
    with Terminal("top", "--url", server.url, "--interval", "60", columns=200) as terminal:
        assert "OWNER" in terminal.wait_for("by rate ▼")
        terminal.resize(70, 12)
        shown = terminal.wait_for("by rate ▼")
        assert "OWNER" not in shown
        [row] = [line for line in shown.splitlines() if run_id in line]
        assert "…" not in row


def test_ctrl_z_gives_the_terminal_back_until_the_shell_goes_on(server: ServerProcess) -> None:
    with Terminal("top", "--url", server.url) as terminal:
        terminal.wait_for("by rate ▼")
        terminal.press("\x1a")
        _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_for("by rate ▼")
        assert terminal.output.count(LEAVES_SCREEN) == 1
        terminal.press("q")
        assert terminal.end() == 0
    assert terminal.output.count(LEAVES_SCREEN) == 2


def test_colours_are_left_out_where_they_are_not_wanted(server: ServerProcess, runs: Runs) -> None:
    runs.start("[hang=1]")
    with Terminal("top", "--url", server.url) as coloured:
        coloured.wait_for("by rate ▼")
    with Terminal("top", "--url", server.url, NO_COLOR="1") as plain:
        plain.wait_for("by rate ▼")
    assert COLOUR in coloured.output
    assert COLOUR not in plain.output


def test_an_outage_is_shown_over_the_last_sample_until_the_server_is_back(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, arguments=[*QUIET]) as server,
        Terminal("top", "--url", server.url) as terminal,
    ):
        terminal.wait_for("No run is open.")
        server.kill()
        terminal.wait_for("cannot be reached")
        terminal.wait_for("connection refused. Shown:")
        server.start()
        terminal.wait_for("events/s")


def test_a_server_that_is_not_there_or_refuses_is_one_line_and_no_screen(tmp_path: Path) -> None:
    nowhere = reattach_here("top", "--url", "http://127.0.0.1:1")
    assert nowhere.status == 1
    assert "Start one with `reattach serve`" in nowhere.err
    created = reattach_here("keys", "create", "r", "--scope", "read", "--data-dir", str(tmp_path))
    with (
        ServerProcess(tmp_path, arguments=[*QUIET]) as server,
        Terminal(
            "top", "--url", server.url, REATTACH_API_KEY=created.out.strip(), columns=300
        ) as terminal,
    ):
        assert terminal.end() == 1
    assert "reattach keys create NAME --scope read --scope admin" in terminal.text
    assert LEAVES_SCREEN not in terminal.output
