"""One state of a SQLite file that another process writes, and its copy."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from reattach.domain.errors import StartupError

_STEP_PAGES: Final = 1024
"""Pages copied at a time: 4 MiB."""
_BUSY_SECONDS: Final = 10.0

OnStep = Callable[[str, int, int], None]
"""Is called with the file's name, the bytes that are copied, and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of a file. The file's server goes on writing, but cannot empty its WAL meanwhile."""

    file: Path
    as_of: datetime
    rows: Mapping[str, int]
    _connection: sqlite3.Connection

    @property
    def size_bytes(self) -> int:
        """The size of the state."""
        pages, page_bytes = self.value("PRAGMA page_count"), self.value("PRAGMA page_size")
        return int(pages) * int(page_bytes)

    def value(self, query: str) -> Any:
        """Return the first value of the first row of a query; None without rows."""
        row = self._connection.execute(query).fetchone()
        return None if row is None else row[0]

    def copy_to(self, target: Path, on_step: OnStep) -> None:
        """Copy the state into a new file with mode 0600, and check the copy.

        Raises:
            StartupError: The copy differs from the state, because a disk or the file is damaged.
        """
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        page_bytes = int(self.value("PRAGMA page_size"))

        def note(_status: int, remaining: int, total: int) -> None:
            on_step(self.file.name, (total - remaining) * page_bytes, total * page_bytes)

        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            # The whole copy is put on the disk at the end.
            copy.execute("PRAGMA synchronous = OFF")
            self._connection.backup(copy, pages=_STEP_PAGES, progress=note)
        _check_copy(target, self.rows)
        with target.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def snapshot(file: Path) -> Iterator[Snapshot]:
    """Open the present state of a file, which stays the same until the context exits.

    A transaction that reads keeps it: without one, each write of another process would let the copy
    begin again.

    Raises:
        StartupError: The file is no database, or is damaged.
    """
    # A connection that could write removes the files beside the database when it is the last one.
    with explaining(file), closing(_open(file, mode="rw")) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        tables = connection.execute(_TABLES).fetchall()  # Here the state begins.
        as_of = datetime.now(UTC)
        yield Snapshot(file, as_of, _count(connection, [name for (name,) in tables]), connection)


@contextmanager
def explaining(file: Path) -> Iterator[None]:
    """Raise the errors of SQLite as a StartupError that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise StartupError(
            f"The database {file} cannot be copied: {error}.",
            remedy="Check that it exists, that this user may read it, and that its disk and the "
            "one of the backup have space. `reattach doctor` checks the files.",
        ) from error


_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"


def _open(file: Path, **options: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(file))}?{urlencode(options)}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_SECONDS,
    )


def _count(connection: sqlite3.Connection, tables: list[str]) -> dict[str, int]:
    return {
        table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]  # noqa: S608
        for table in tables
    }


def _check_copy(copy: Path, rows: Mapping[str, int]) -> None:
    with closing(_open(copy, mode="ro", immutable="1")) as connection:
        faults = [fault for (fault,) in connection.execute("PRAGMA integrity_check(3)")]
        if faults != ["ok"]:
            raise StartupError(
                f"The copy of {copy.name} is damaged: {'; '.join(faults)}.",
                remedy="The file itself is damaged, or one of the disks. Check both with `reattach "
                "doctor`, and keep older backups.",
            )
        if _count(connection, [*rows]) != rows:
            raise StartupError(
                f"The copy of {copy.name} has other rows than the file.",
                remedy="Make the backup again; if it persists, check the disks.",
            )
