"""``reattach callbacks secret`` shows and replaces the secrets that sign callbacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import reattach_here


def test_a_secret_is_made_once_and_rotated_on_demand(tmp_path: Path) -> None:
    """D5: by command, for each tenant."""

    def secrets(*arguments: str) -> list[str]:
        ended = reattach_here("callbacks", "secret", *arguments, "--data-dir", str(tmp_path))
        assert ended.status == 0, ended.err
        return ended.out.split()

    [first] = secrets()
    assert first.startswith("whsec_")
    assert secrets() == [first]
    made = reattach_here(
        "keys", "create", "key", "--tenant", "tenant-2", "--data-dir", str(tmp_path)
    )
    assert made.status == 0, made.err
    [other] = secrets("--tenant", "tenant-2")
    assert other != first
    new, old = secrets("--rotate")
    assert old == first
    assert secrets() == [new, first]
    assert secrets("--tenant", "tenant-2") == [other]


@pytest.mark.parametrize("more", [(), ("--rotate",)])
def test_a_tenant_without_a_key_gets_no_secret(tmp_path: Path, more: tuple[str, ...]) -> None:
    """D5: a mistyped tenant is refused."""
    ended = reattach_here(
        "callbacks", "secret", "--tenant", "nope", *more, "--data-dir", str(tmp_path)
    )
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        "reattach: No key belongs to the tenant 'nope', so it cannot ask for callbacks. "
        f"`reattach keys list --data-dir {tmp_path}` shows the tenants of the keys.\n"
    )
