"""``reattach keys``: scopes, expiry, and the list of keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app
from reattach.domain.clock import SystemClock
from reattach.records.base import ALL_SCOPES, ApiKey, KeyScope
from reattach.records.records import Records
from reattach.server.datadir import records_url


def keys(data_dir: Path, *arguments: str, status: int = 0) -> str:
    """Standard output of a ``reattach keys`` command; of one that fails, all that it says."""
    ended = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(data_dir)])
    assert ended.exit_code == status, ended.output
    return ended.output if status else ended.stdout


def kept(data_dir: Path) -> list[ApiKey]:
    async def found() -> list[ApiKey]:
        records = await Records.open(records_url(data_dir), clock=SystemClock())
        try:
            return await records.keys.list(None)
        finally:
            await records.aclose()

    return asyncio.run(found())


def test_a_key_gets_the_scopes_and_the_expiry_that_are_asked_for(tmp_path: Path) -> None:
    """D13: keys have scopes and an expiry."""
    keys(tmp_path, "create", "whole")
    keys(tmp_path, "create", "short", "--expires", "30d", "--scope", "read", "--scope", "send")
    whole, short = kept(tmp_path)
    assert (whole.scopes, whole.expires_at) == (ALL_SCOPES, None)
    assert short.scopes == {KeyScope.READ, KeyScope.SEND}
    assert short.expires_at is not None
    assert (short.expires_at - short.created_at).days in {29, 30}
    first, second = (line.split("\t") for line in keys(tmp_path, "list").splitlines())
    assert first[5:] == ["admin,read,send", "forever", "never used", "active"]
    assert second[5:] == [
        *("read,send", f"until {short.expires_at:%Y-%m-%d %H:%M}", "never used", "active")
    ]


@pytest.mark.parametrize("expires", ["", "30", "d", "0d", "-1d", "1.5h", "99999d", "30 d", "soon"])
def test_an_invalid_expiry_is_refused_with_examples(tmp_path: Path, expires: str) -> None:
    """D13: a mistyped expiry makes no key that lasts for ever."""
    said = keys(tmp_path, "create", "key", "--expires", expires, status=2)
    assert "30d" in said
    assert "1 to 9999 minutes" in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_scope_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    """D13: a mistyped scope makes no key."""
    said = keys(tmp_path, "create", "key", "--scope", "write", status=2)
    assert "read" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\tb", "\x1b[31m"])
def test_a_key_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    """D13."""
    assert "The name is empty" in keys(tmp_path, "create", name, status=2)
    assert not list(tmp_path.iterdir())


def test_the_first_key_of_a_named_tenant_is_reported_as_such(tmp_path: Path) -> None:
    """D13: a mistyped tenant is seen at once."""

    def said(*arguments: str) -> str:
        command = ["keys", "create", *arguments, "--data-dir", str(tmp_path)]
        return CliRunner().invoke(app, command).stderr

    assert "first key of tenant acme" in said("a", "--tenant", "acme")
    assert "first key" not in said("b", "--tenant", "acme")
    assert "first key" not in said("c", "--tenant", "new")
    assert "first key" not in said("d")


@pytest.mark.parametrize("tenant", ["", "a b", "a\nb"])
def test_a_malformed_tenant_is_refused(tmp_path: Path, tenant: str) -> None:
    """D13: an empty variable in a script does not mean the default tenant."""
    assert "as `reattach keys" in keys(tmp_path, "create", "key", "--tenant", tenant, status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "key-1"]])
def test_a_data_directory_that_does_not_exist_is_reported_and_not_created(
    tmp_path: Path, arguments: list[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} does not exist" in keys(nowhere, *arguments, status=1)
    assert not nowhere.exists()


def test_the_commands_that_remedies_name_use_the_same_data_directory(tmp_path: Path) -> None:
    tmp_path.joinpath("records.db").touch()
    runner = CliRunner()
    listed = runner.invoke(app, ["keys", "list", "--data-dir", str(tmp_path)])
    assert f"`reattach keys create NAME --data-dir {tmp_path}`" in listed.stderr
    arguments = ["keys", "create", "first", "--tenant", "other", "--data-dir", str(tmp_path)]
    created = runner.invoke(app, arguments)
    assert f" --data-dir {tmp_path}`" in created.stderr
