"""The size of the write-ahead log (WAL) of the records' SQLite file.

SQLite checkpoints the WAL by itself at some thousand pages, but restarts it only while nobody reads,
and never because the disk is full. Without help it grows under readers and fills the disk.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from reattach.domain.limits import RECORDS_WAL_BYTES

_READERS_WAIT_MS: Final = 100
"""How long to wait for readers; writers wait meanwhile."""
_PAUSE_SECONDS: Final = 1.0
"""The shortest pause between two attempts after failures or because of the size."""


class Wal:
    """The WAL of one file. Used only by the thread that writes."""

    def __init__(self, file: str, engine: Engine) -> None:
        self._file = Path(f"{file}-wal")
        self._engine = engine
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
