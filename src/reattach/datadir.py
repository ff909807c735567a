"""The directory of an embedded server: its two database files, and one process that owns it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reattach.errors import StartupError

_LOCK_NAME = "reattach.lock"


def events_file(data_dir: Path) -> Path:
    """The file that holds the runs' logs."""
    return data_dir / "events.db"


def records_file(data_dir: Path) -> Path:
    """The file that holds everything else.

    It is a file of its own because SQLite has one write lock for each file, and an event must not
    wait for a record.
    """
    return data_dir / "records.db"


def make(data_dir: Path) -> None:
    """Make the directory, for its owner only, unless it is there. Raises StartupError."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The data directory {data_dir} can not be made: {error.strerror}. "
            "Name another one with --data-dir or REATTACH_DATA_DIR."
        ) from error


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Own the directory for as long as the context lasts, or the process lives.

    The lock is the kernel's, so a killed process leaves none behind. Raises StartupError if
    another process owns the directory.
    """
    make(data_dir)
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartupError(
            f"The data directory {data_dir} can not be written to: {error.strerror}. "
            "Give its ownership to the user that runs the server, or name another directory."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartupError(
                f"Another server (process {owner}) is using the data directory {data_dir}. "
                "Stop that one, or give this one a directory of its own with --data-dir."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(lock)
