"""The size of the write-ahead log (WAL) of the records' SQLite file.

SQLite checkpoints the WAL by itself when it has many pages, but restarts it only while nobody
reads, and never because the disk is full. Without help it grows under readers and fills the disk.
"""

import os
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from reattach.domain.limits import RECORDS_WAL_BYTES
from reattach.records.database.prepared import driver_of

CHECKPOINT_PAGES: Final = 2000
"""The pages of the WAL after which a commit copies them into the database. Sends change the same
pages over and over, and each is copied once. It is half of RECORDS_WAL_BYTES."""
_INDEX_HEADER: Final = struct.Struct("=8xI4xI76xI")
"""The count of commits, the pages that the WAL has, and those of them that were copied."""
_READERS_WAIT_MS: Final = 100
"""How long to wait for readers; writers wait meanwhile."""
_PAUSE_SECONDS: Final = 1.0
"""The shortest pause between two attempts after failures or because of the size."""


class WalIndex:
    """The index of a WAL, a file that SQLite shares among all connections.

    Close it after all connections: closing a file releases every lock that the process has on it.
    See https://sqlite.org/walformat.html for the format.
    """

    def __init__(self, file: str) -> None:
        self._path = f"{file}-shm"
        self._descriptor: int | None = None

    def lets_commit_at_once(self) -> bool:
        """Return whether the next commit need not wait for the disk.

        One that begins the WAL anew waits, and one after which it is copied does.
        """
        header = self._header()
        if header is None:
            return False
        _, pages, copied = header
        return copied < pages < CHECKPOINT_PAGES

    def commits(self) -> int | None:
        """Return a number that each commit of any program raises by one; None if unknown."""
        header = self._header()
        return None if header is None else header[0]

    def _header(self) -> tuple[int, int, int] | None:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            header = os.pread(self._descriptor, _INDEX_HEADER.size, 0)
            commits, pages, copied = _INDEX_HEADER.unpack(header)
        except (OSError, struct.error):
            return None
        return commits, pages, copied

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Wal:
    """The WAL of one file. Used only by the thread that writes."""

    def __init__(self, file: str, lend: Callable[[], AbstractContextManager[Connection]]) -> None:
        """``lend`` lends a connection that writes, without a transaction."""
        self._file = Path(f"{file}-wal")
        self._lend = lend
        self._tried_at_seconds = -_PAUSE_SECONDS

    def note_commit(self) -> None:
        """Empty the WAL if it is too large."""
        if self._size_bytes() > RECORDS_WAL_BYTES:
            self.try_to_empty()

    def try_to_empty(self) -> None:
        """Empty the WAL if possible, unless that was tried a moment ago."""
        now_seconds = time.monotonic()
        if now_seconds - self._tried_at_seconds < _PAUSE_SECONDS:
            return
        self._tried_at_seconds = now_seconds
        try:
            self.empty()
        except sqlite3.Error:
            return  # The transactions that fail report the error.

    def empty(self) -> None:
        """Move the WAL into the database, and truncate its file unless a reader needs it."""
        if not self._size_bytes():
            return
        with self._lend() as connection:
            cursor = driver_of(connection).cursor()
            (usual_ms,) = cursor.execute("PRAGMA busy_timeout").fetchone()
            cursor.execute(f"PRAGMA busy_timeout = {_READERS_WAIT_MS}")
            try:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {usual_ms}")
                cursor.close()

    def _size_bytes(self) -> int:
        try:
            return self._file.stat().st_size
        except OSError:
            return 0
