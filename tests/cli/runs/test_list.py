"""``reattach runs list``: filters, pages, and the forms of the result."""

from __future__ import annotations

import json

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import Ended, reattach_here
from tests.support.runs_of_a_server import Runs
from tests.support.terminal import Terminal


def listed(server: ServerProcess, *arguments: str, status: int = 0) -> Ended:
    ended = reattach_here("runs", "list", *arguments, "--url", server.url)
    assert ended.status == status, ended
    return ended


def test_runs_are_listed_the_newest_first_with_their_columns(
    server: ServerProcess, runs: Runs
) -> None:
    first, second = runs.finish("one word"), runs.finish("[fail=1]")
    lines = [
        line.split("\t") for line in listed(server, "--agent-id", runs.agent_id).out.splitlines()
    ]
    assert [line[:3] for line in lines] == [
        [second, "failed", "scripted/echo"],
        [first, "completed", "scripted/echo"],
    ]
    assert int(lines[1][3]) > 3
    assert lines[1][7:10] == ["1", "0", "guide"]
    assert lines[1][11] == "one word"


def test_filters_reach_the_server(server: ServerProcess, runs: Runs) -> None:
    active, ended = runs.start("[hang=1]"), runs.finish("a rare parrot")
    of_agent = ("--agent-id", runs.agent_id, "--quiet")
    assert listed(server, *of_agent, "--active").out.split() == [active]
    assert listed(server, *of_agent, "--status", "completed").out.split() == [ended]
    both = listed(server, *of_agent, "--status", "completed", "--active").out.split()
    assert both == [ended, active]
    assert listed(server, *of_agent, "--query", "rare parrot").out.split() == [ended]
    assert listed(server, *of_agent, "--model", "scripted/other").out == ""


def test_a_limited_list_says_that_it_goes_on_and_how(server: ServerProcess, runs: Runs) -> None:
    ids = [runs.finish("word") for _ in range(3)]
    of_agent = ("--agent-id", runs.agent_id)
    cut = listed(server, *of_agent, "--limit", "2")
    assert [line.split("\t")[0] for line in cut.out.splitlines()] == ids[:0:-1]
    assert f"--after {ids[1]} goes on from here" in cut.err
    rest = listed(server, *of_agent, "--after", ids[1], "--json")
    assert [run["id"] for run in json.loads(rest.out)] == [ids[0]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--agent-id", "agent-00000000-0000-4000-8000-000000000000"), "No run matches."),
        (("--status", "nonsense"), "is not one of"),
    ],
)
def test_an_empty_list_and_a_wrong_filter_say_what_to_do(
    server: ServerProcess, arguments: tuple[str, ...], said: str
) -> None:
    ended = reattach_here("runs", "list", *arguments, "--url", server.url, COLUMNS="200")
    assert ended.out == ""
    assert said in ended.err


def test_a_terminal_gets_a_table_with_whole_ids_that_fits(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.finish("[chunks=30] of an island")
    command = ("runs", "list", "--agent-id", runs.agent_id, "--url", server.url)
    with Terminal(*command, columns=80) as narrow:
        assert narrow.end() == 0
    with Terminal(*command, columns=180) as wide:
        assert wide.end() == 0
    for terminal in (narrow, wide):
        head, row = terminal.text.splitlines()[:2]
        assert head.split()[:2] == ["RUN", "STATUS"]
        assert row.split()[:2] == [run_id, "completed"]
    assert max(len(line.rstrip()) for line in narrow.text.splitlines()) <= 80
    assert "INPUT" not in narrow.text
    assert narrow.text.splitlines()[0].split() == ["RUN", "STATUS", "EVENTS", "AGE", "READERS"]
    assert "of an island" in wide.text


def test_a_small_terminal_gets_fewer_columns_with_whole_numbers(
    server: ServerProcess, runs: Runs
) -> None:
    runs.finish("[chunks=12000]")
    command = ("runs", "list", "--agent-id", runs.agent_id, "--url", server.url)
    with Terminal(*command, columns=60) as small:
        assert small.end() == 0
    head, row = small.text.splitlines()[:2]
    assert head.split()[:2] == ["RUN", "STATUS"]
    assert len(row.split()) == len(head.split())
    assert "…" not in small.text.replace("complet…", "")
