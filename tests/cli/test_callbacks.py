"""``reattach callbacks secret`` shows and replaces the secrets that sign callbacks."""

from __future__ import annotations

from pathlib import Path

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
    [other] = secrets("--tenant", "tenant-2")
    assert other != first
    new, old = secrets("--rotate")
    assert old == first
    assert secrets() == [new, first]
    assert secrets("--tenant", "tenant-2") == [other]
