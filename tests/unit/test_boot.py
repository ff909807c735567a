from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from reattach.server import datadir
from reattach.server.boot import boot_id


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    datadir.events_file(tmp_path).write_bytes(b"something")
    return tmp_path


def test_the_boot_id_of_this_machine_is_the_same_each_time() -> None:
    """C10: on Linux and macOS there is one."""
    found = boot_id()
    assert found
    assert found == boot_id()


def test_a_new_directory_lacks_nothing(tmp_path: Path) -> None:
    assert not datadir.may_lack_events(tmp_path, lambda: "boot-1")


@pytest.mark.parametrize(
    ("lives", "boot", "lacks"),
    [
        ([], "boot-1", True),
        ([("boot-1", "process")], "boot-1", False),
        ([("boot-1", "process")], "boot-2", True),
        ([("boot-1", "power")], "boot-2", False),
        ([("boot-1", "process"), ("boot-1", "power")], "boot-2", True),
        ([("boot-1", "process"), ("boot-2", "power")], "boot-3", False),
        ([("boot-1", "power"), ("boot-1", "process")], "boot-2", True),
        ([(None, "process")], "boot-1", True),
        ([(None, "process")], None, True),
        ([("boot-1", "process")], None, True),
        ([(None, "power")], None, False),
    ],
)
def test_a_store_may_lack_events_after_a_boot_unless_it_waited_for_the_disk(
    data_dir: Path, lives: list[tuple[str | None, str]], boot: str | None, lacks: bool
) -> None:
    """C10: an unknown boot counts as another one."""
    for life, durability in lives:
        datadir.note_boot(data_dir, durability, partial(str, life) if life else lambda: None)
    assert datadir.may_lack_events(data_dir, lambda: boot) is lacks


@pytest.mark.parametrize("content", ["", "boot-1", "boot-1 process more", "\xff\xfe"])
def test_a_damaged_note_counts_as_a_power_cut(data_dir: Path, content: str) -> None:
    """C10: whatever stands in the file."""
    (data_dir / "reattach.boot").write_text(content, encoding="latin-1")
    assert datadir.may_lack_events(data_dir, lambda: "boot-1")
