"""When the WAL of the SQLite log is emptied."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from reattach.log.sqlite.folding import Sizes, _Wal


@pytest.mark.promise("P12")
async def test_a_commit_that_fails_while_the_size_is_read_is_not_forgotten() -> None:
    wal = _Wal("events.db", Sizes(), lambda: 0.0)

    def read_size(_file: str) -> int:
        wal.is_urgent = True  # as after a commit that found the disk full
        return 0

    with patch("reattach.log.sqlite.tables.wal_bytes", read_size):
        await wal.check_size()
    assert wal.is_urgent


async def test_writes_while_the_size_is_read_count_for_the_next_reading() -> None:
    wal = _Wal("events.db", Sizes(checkpoint_bytes=1024), lambda: 0.0)

    def read_size(_file: str) -> int:
        wal.note_write(1024)
        return 0

    with patch("reattach.log.sqlite.tables.wal_bytes", read_size):
        await wal.check_size()
    assert wal.needs_size_check
    assert not wal.is_urgent
