"""The write-ahead log of the records' SQLite file, and when it is emptied.

SQLite moves it into the database by itself once it has a thousand pages, but begins it anew only
when nobody reads, and never because the disk is full. Left alone it grows under readers, and takes
the last room of a disk.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from reattach.domain.limits import RECORDS_WAL_BYTES

_READERS_WAIT_MS: Final = 100
"""How long readers are waited for, since those who write wait meanwhile."""
_PAUSE_SECONDS: Final = 1.0
"""The least between two tries because of failures or size."""


class Wal:
    """The WAL of one file. For the thread that writes."""

    def __init__(self, file: str, engine: Engine) -> None:
        self._file = Path(f"{file}-wal")
        self._engine = engine
        self._tried_at_seconds = -_PAUSE_SECONDS

    def note_commit(self) -> None:
        """Empty it if it is too large."""
        if self._size_bytes() > RECORDS_WAL_BYTES:
            self.try_to_empty()

    def try_to_empty(self) -> None:
        """Empty it, unless that was tried a moment ago, or cannot be done at present."""
        now_seconds = time.monotonic()
        if now_seconds - self._tried_at_seconds < _PAUSE_SECONDS:
            return
        self._tried_at_seconds = now_seconds
        try:
            self.empty()
        except sqlite3.Error:
            return  # What is wrong with the disk is told by the transactions that fail.

    def empty(self) -> None:
        """Move all of it into the database, and truncate its file unless somebody reads from it."""
        if not self._size_bytes():
            return
        with closing(self._engine.raw_connection()) as borrowed:
            cursor = borrowed.cursor()
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
