"""SQLite's write-ahead log as a power cut leaves it: without the commits that were not synced."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")


def wal_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def commits(database: Path) -> list[int]:
    """Return where each commit of the WAL ends, in bytes; the first entry is a WAL without any."""
    wal = wal_of(database).read_bytes() if wal_of(database).exists() else b""
    if len(wal) < _HEADER.size:
        return [0]
    _, _, page_bytes, _, *salts, _, _ = _HEADER.unpack_from(wal)
    ends, at = [_HEADER.size], _HEADER.size
    while at + _FRAME.size + page_bytes <= len(wal):
        _, pages_after_commit, *frame_salts, _, _ = _FRAME.unpack_from(wal, at)
        if frame_salts != salts:
            break  # It remains from before the last reset of the WAL.
        at += _FRAME.size + page_bytes
        if pages_after_commit:
            ends.append(at)
    return ends


def drop_commits(database: Path, end: int) -> None:
    """Cut the WAL behind the commit that ends there, as a power cut does with what follows."""
    wal = wal_of(database)
    if wal.exists():
        with wal.open("r+b") as file:
            file.truncate(end)
