"""``reattach serve`` reads plain options itself, as Typer does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from reattach.cli.commands import app
from reattach.cli.plain_serve import FLAGS, LISTS, VALUES, plain_options

COMMAND: Any = get_command(app)

PLAIN = (
    "",
    "--port 0",
    "--host 0.0.0.0 --port 8283 --fd 3 --workers 4",
    "--data-dir data --database-url postgresql://host/one --log-url redis://host --config a.toml",
    "--durability power --default-model scripted/echo --log-format json --log-level debug",
    "--model openai/gpt-4o-mini --scripted --model anthropic/claude --require-key",
    "--no-scripted",
)
OTHERS = (
    *("--help", "--port", "--port=0", "--port -1", "--port abc", "--port 1_0", "--port ٣"),
    *("--port 1 --port 2", "--scripted --no-scripted", "--unknown 1", "serve", "--", "--model"),
)


def by_typer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings with which the command of Typer runs the server."""
    given: list[dict[str, Any]] = []

    def run(options: dict[str, Any]) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr("reattach.cli.serving.run_server", run)
    with pytest.raises(SystemExit) as ended:
        app(["serve", *words])
    assert ended.value.code == 0
    return given[0]


@pytest.mark.parametrize("words", PLAIN)
def test_plain_options_are_the_settings_that_typer_reads(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain_options(words.split()) == by_typer(words.split(), monkeypatch)


@pytest.mark.parametrize("words", OTHERS)
def test_all_else_is_left_to_typer(words: str) -> None:
    assert plain_options(words.split()) is None


def test_every_option_of_the_command_is_known() -> None:
    options = {
        name
        for parameter in COMMAND.commands["serve"].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }

    assert options - {"--help"} == {*VALUES, *LISTS, *FLAGS}


def test_settings_that_are_not_valid_end_it_with_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reattach", "serve", "--data-dir", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--port", "99999"], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("reattach: The settings are not valid. port: Expected 65535")
    assert ended.stderr.count("\n") == 1
