"""The storage of a client in files."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from reattach.client import FileStorage


def test_it_is_a_mapping_that_another_one_of_the_same_folder_sees(tmp_path: Path) -> None:
    folder = tmp_path / "positions"
    storage = FileStorage(folder)
    assert (len(storage), list(storage)) == (0, [])
    key = "reattach https://example.org conv/../1 " + "x" * 1000
    storage[key] = "ä\n"
    storage["other"] = "1"
    again = FileStorage(str(folder))
    assert dict(again) == {key: "ä\n", "other": "1"}
    again["other"] = "2"
    assert storage.pop("other") == "2"
    with pytest.raises(KeyError, match="other"):
        storage["other"]
    with pytest.raises(KeyError, match="other"):
        del storage["other"]
    assert len(again) == 1


@pytest.mark.parametrize("content", ["", "{", "7", "{}"])
def test_a_file_that_a_power_cut_has_damaged_counts_as_absent(tmp_path: Path, content: str) -> None:
    storage = FileStorage(tmp_path)
    storage["key"] = "value"
    [file] = tmp_path.iterdir()
    file.write_text(content)
    assert "key" not in storage
    assert list(storage) == []
    storage["key"] = "again"
    assert dict(storage) == {"key": "again"}


def test_threads_that_write_one_key_leave_one_whole_value(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)

    def write(value: str) -> None:
        for _ in range(20):
            storage["key"] = value * 1000
            assert len(set(storage["key"])) == 1

    threads = [threading.Thread(target=write, args=(value,)) for value in "abcd"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(storage["key"]) == 1000
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
