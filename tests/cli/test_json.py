"""Every command that prints a result prints it as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from reattach.cli.commands import app
from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.database import migrations
from tests.support.commands import reattach_here

WITHOUT_A_RESULT = {"serve", "tenants export"}
"""The first runs until it is stopped, and the lines of the second are JSON anyway."""


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)
        else:
            assert isinstance(command, TyperCommand)
            yield " ".join((*path, name)), command


def test_every_command_has_a_form_for_programs() -> None:
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    without = {
        name
        for name, command in commands(root)
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == WITHOUT_A_RESULT


def printed(data_dir: Path, *arguments: str, status: int = 0) -> Any:
    ended = reattach_here(*arguments, "--json", "--data-dir", str(data_dir))
    assert ended.status == status, ended.err
    return json.loads(ended.out)


def test_commands_on_the_stores_print_their_results_as_json(tmp_path: Path) -> None:
    status = printed(tmp_path, "db", "status", status=1)
    assert status == {"present": None, "needed": migrations.HEAD}
    upgraded = printed(tmp_path, "db", "upgrade")
    assert upgraded == {"before": None, "after": migrations.HEAD}
    key = printed(tmp_path, "keys", "create", "name")
    revoked = printed(tmp_path, "keys", "revoke", key["id"])
    assert revoked == {"id": key["id"], "revoked": True}
    shown = printed(tmp_path, "callbacks", "secret")
    assert (shown["tenant"], len(shown["secrets"])) == (DEFAULT_TENANT, 1)
    assert printed(tmp_path, "tokens", "rotate") == {"rotated": True, "at_once": False}
