from __future__ import annotations

import pytest
from typer.testing import CliRunner

from reattach.cli import app

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
