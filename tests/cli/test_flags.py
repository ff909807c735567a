from __future__ import annotations

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app

COMMANDS = (
    *("serve", "doctor", "keys create", "keys list", "keys revoke"),
    *("callbacks secret", "db upgrade", "db status"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_a_servers_stores_has_the_flags_that_name_them(command: str) -> None:
    ended = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    for flag in "--data-dir", "--database-url", "--log-url", "--config":
        assert ended.output.count(f" {flag} ") == 1, flag
    assert "(env: REATTACH_DATABASE_URL)" in ended.output


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("serve --port abc", "value for '--port': Expected a whole number; got 'abc'."),
        (
            "keys create x --scope all",
            "'--scope': 'all' is not one of 'read', 'send', 'admin', 'operator'.",
        ),
        ("keys create x --expires soon", "value for '--expires': 'soon' is not a time"),
        ("serve --port 99999", "Expected 65535 or less; got 99999. Correct this and start again."),
    ],
)
def test_a_wrong_value_of_an_option_is_explained_as_that_of_a_setting(
    command: str, sentence: str
) -> None:
    ended = CliRunner().invoke(app, command.split(), env={"COLUMNS": "200"})
    assert ended.exit_code != 0
    assert sentence in f"{ended.output}{ended.exception}"
