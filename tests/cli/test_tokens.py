"""``reattach tokens``: the keys that sign stream tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reattach.cli.commands import app
from reattach.domain.clock import SystemClock
from reattach.domain.errors import StartupError
from reattach.records.records import Records
from reattach.server.datadir import records_url
from reattach.settings import Settings


def rotate(data_dir: Path, *arguments: str, status: int = 0) -> str:
    ended = CliRunner().invoke(app, ["tokens", "rotate", *arguments, "--data-dir", str(data_dir)])
    assert ended.exit_code == status, ended.output
    return ended.output


def secrets(data_dir: Path, *, creates: bool = False) -> tuple[str, ...]:
    async def found() -> tuple[str, ...]:
        records = await Records.open(records_url(data_dir), clock=SystemClock())
        try:
            if creates:
                await records.tokens.create_first_key()
            return (await records.tokens.standing()).secrets
        finally:
            await records.aclose()

    return asyncio.run(found())


@pytest.mark.promise("S11")
def test_a_rotation_puts_a_new_key_first_and_shows_none(tmp_path: Path) -> None:
    (first,) = secrets(tmp_path, creates=True)
    said = rotate(tmp_path)
    assert "The old key verifies for 24 h." in said
    second, old = secrets(tmp_path)
    assert old == first
    said += rotate(tmp_path, "--at-once")
    assert "All tokens issued before are invalid." in said
    (third,) = secrets(tmp_path)
    assert third not in {first, second}
    assert not [secret for secret in (first, second, third) if secret in said]


@pytest.mark.promise("S11")
def test_keys_of_the_settings_are_replaced_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REATTACH_TOKEN_KEYS", "k" * 32)
    said = rotate(tmp_path, status=1)
    assert "REATTACH_TOKEN_KEYS" in said
    assert "k" * 32 not in said


@pytest.mark.promise("S11")
def test_a_key_that_could_be_guessed_is_refused_and_not_shown() -> None:
    with pytest.raises(StartupError) as refused:
        Settings(token_keys="hunter2")
    assert "fewer than 32 characters" in refused.value.detail
    assert "hunter2" not in refused.value.detail
    two = Settings(token_keys=f"{'a' * 32},{'b' * 32}")
    assert [key.get_secret_value()[0] for key in two.token_keys] == ["a", "b"]
    assert "a" * 32 not in repr(two)
