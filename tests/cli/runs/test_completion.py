"""Shells complete commands, options and the ids that the server of the command line has."""

from __future__ import annotations

from pathlib import Path

import pytest

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import reattach_here
from tests.support.hanging_server import HangingServer
from tests.support.runs_of_a_server import Runs

NOWHERE = "http://127.0.0.1:1"


def completed(line: str, **variables: str) -> list[str]:
    """Return the values that bash gets for the last word of the line."""
    ended = reattach_here(
        _REATTACH_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split(" ")) - 1),
        **variables,
    )
    assert (ended.status, ended.err) == (0, "")
    return ended.out.split()


def test_commands_and_values_of_options_are_completed() -> None:
    assert completed("reattach runs ") == ["list", "show", "cancel", "tail"]
    assert completed("reattach tokens issue --scope ") == ["read", "send", "cancel"]


def test_ids_come_from_the_server_of_the_line_or_of_the_environment(
    server: ServerProcess, runs: Runs
) -> None:
    active, ended = runs.start("[hang=1]"), runs.finish("word")
    assert active in completed(f"reattach runs cancel --url {server.url} ")
    of_cancel = completed("reattach runs cancel run-", REATTACH_URL=server.url)
    assert active in of_cancel
    assert ended not in of_cancel
    assert completed(f"reattach runs tail {ended[:-3]}", REATTACH_URL=server.url) == [ended]
    agents = completed("reattach runs list --agent-id agent-", REATTACH_URL=server.url)
    assert runs.agent_id in agents
    models = completed("reattach runs list --model scripted/", REATTACH_URL=server.url)
    assert "scripted/echo" in models


def test_a_server_that_is_away_or_silent_completes_nothing_and_says_nothing() -> None:
    assert completed("reattach runs tail ", REATTACH_URL=NOWHERE) == []
    with HangingServer() as server:
        assert completed("reattach runs tail ", REATTACH_URL=server.url) == []
    assert completed("reattach runs tail ", REATTACH_URL="nonsense") == []


@pytest.mark.parametrize(
    ("shell", "place", "function"),
    [
        ("bash", ".bash_completions/reattach.sh", "_reattach_completion"),
        ("zsh", ".zfunc/_reattach", "#compdef reattach"),
        ("fish", ".config/fish/completions/reattach.fish", "complete --command reattach"),
    ],
)
def test_completion_is_installed_for_the_shell_in_use(
    tmp_path: Path, shell: str, place: str, function: str
) -> None:
    ended = reattach_here(
        "--install-completion",
        shell,
        HOME=str(tmp_path),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert ended.status == 0, ended.err
    assert function in (tmp_path / place).read_text("utf-8")
