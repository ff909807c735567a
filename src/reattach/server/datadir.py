"""The directory of an embedded server: its two database files, and one process that owns it."""

import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.server.boot import BootId, boot_id

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "Reattach stores its data on Linux and macOS only. On Windows, run the server inside WSL; "
        "the Python client, reattach.client, runs there without it."
    ) from error

_LITTLE_BYTES: Final = 1 << 30
"""Free space that a busy server may fill in an hour: each stream event takes about 300 bytes."""
_NO_BYTES: Final = 16 << 20
"""Free space with which a database can hardly be made."""

_FILE_MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
"""The rights of everybody but the owner."""

_LOCK_NAME: Final = "reattach.lock"
_BOOT_NAME: Final = "reattach.boot"
_UNKNOWN: Final = "unknown"


def events_file(data_dir: Path) -> Path:
    """The file that holds the runs' logs."""
    return data_dir / "events.db"


def records_file(data_dir: Path) -> Path:
    """The file that holds everything else.

    It is a file of its own because SQLite has one write lock for each file, and an event must not
    wait for a record.
    """
    return data_dir / "records.db"


def records_url(data_dir: Path) -> str:
    """The URL of the database in ``records_file``."""
    return f"sqlite:///{records_file(data_dir)}"


def log_url(data_dir: Path, *, durability: str) -> str:
    """The URL of the log in ``events_file``; ``durability`` is that of the settings."""
    return f"sqlite:{quote(str(events_file(data_dir)))}?durability={durability}"


def make(data_dir: Path) -> None:
    """Make the directory and its databases, for their owner only, unless they are there.

    Databases that others may read are closed to them, if they are this user's. SQLite gives what it
    puts beside a database the same mode. A directory that was there stays as it is.

    Raises:
        StartupError: The directory cannot be made, or not be written to.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The data directory {data_dir} cannot be made: {error.strerror}. "
            "Name another one with --data-dir or REATTACH_DATA_DIR."
        ) from error
    for file in (events_file(data_dir), records_file(data_dir)):
        # A file that is there is not opened: closing it would drop SQLite's locks of this process.
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE))
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(data_dir, error) from error
    for file in _files(data_dir):
        status = file.stat()
        if status.st_mode & _OTHERS and status.st_uid == os.geteuid():
            file.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def has_records(data_dir: Path) -> bool:
    """Whether the directory has a database of records with anything in it."""
    return _has_content(records_file(data_dir))


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _files(data_dir: Path) -> list[Path]:
    """The files in the directory that are ours."""
    databases = [events_file(data_dir), records_file(data_dir)]
    names = [f"{file.name}{suffix}" for file in databases for suffix in ("", "-wal", "-shm")]
    found = [data_dir / name for name in (*names, _LOCK_NAME, _BOOT_NAME)]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def _unwritable(data_dir: Path, error: OSError) -> StartupError:
    return StartupError(
        f"The data directory {data_dir} cannot be written to: {error.strerror}. "
        "Give its ownership to the user that runs the server, or name another directory."
    )


@contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Own the directory for as long as the context lasts, or the process lives.

    The lock is the kernel's, so a killed process leaves none behind. Raises StartupError if
    another process owns the directory.
    """
    make(data_dir)
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT, _FILE_MODE)
    except OSError as error:
        raise _unwritable(data_dir, error) from error
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


def may_lack_events(data_dir: Path, boot: BootId = boot_id) -> bool:
    """Whether the stores may have lost what they acknowledged, since the machine lost its power.

    They may if their last owner did not wait for the disk and this is another boot than its own,
    or if either is not known. ``note_boot`` is to be called once the stores have taken that in.
    """
    if not _has_content(events_file(data_dir)) and not has_records(data_dir):
        return False
    noted_boot, durability = _noted(data_dir)
    return durability != "power" and (noted_boot is None or noted_boot != boot())


def note_boot(data_dir: Path, durability: str, boot: BootId = boot_id) -> None:
    """Note in which boot, and with which durability, the stores are written from now on.

    Within one boot the weaker durability stays: what was written with it may not be on the disk.
    """
    present = boot()
    noted_boot, noted_durability = _noted(data_dir)
    if present is not None and noted_boot == present and noted_durability == "process":
        durability = "process"
    file = data_dir / _BOOT_NAME
    fresh = file.with_suffix(".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        try:
            os.write(descriptor, f"{present or _UNKNOWN} {durability}\n".encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(file)
    except OSError as error:
        raise StartupError(
            f"The file {file} cannot be written: {error.strerror}. Make room on the disk, and "
            "give the data directory to the user that runs the server."
        ) from error


def _noted(data_dir: Path) -> tuple[str | None, str | None]:
    """The boot id and the durability that were noted last; None for what is not known."""
    try:
        words = (data_dir / _BOOT_NAME).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None, None
    if len(words) != 2:
        return None, None
    return None if words[0] == _UNKNOWN else words[0], words[1]


def check(data_dir: Path) -> list[Diagnostic]:
    """What an operator should know of the directory; nothing is made or kept."""
    what = "data directory"
    place = data_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    mend = "Give it to the user that runs the server, or name another one with --data-dir."
    if not place.is_dir():
        return [Diagnostic("wrong", what, f"{place} is not a directory", mend)]
    if not os.access(place, os.W_OK | os.X_OK):
        return [Diagnostic("wrong", what, f"{place} can not be written to", mend)]
    exists = place == data_dir
    said = f"{data_dir} {'can be written to' if exists else 'does not exist yet; it can be made'}"
    diagnostics = [Diagnostic("ok", what, said), _space(place), _owner(data_dir)]
    return [*diagnostics, _access(data_dir)] if exists else diagnostics


def _access(data_dir: Path) -> Diagnostic:
    """Whether other users of the machine can read what is kept."""
    what = "data access"
    if not data_dir.stat().st_mode & _OTHERS:
        return Diagnostic("ok", what, "only its owner can read it")
    open_files = [file for file in _files(data_dir) if file.stat().st_mode & _OTHERS]
    if open_files:
        names = " ".join(shlex.quote(str(file)) for file in open_files)
        said = f"other users may read {', '.join(file.name for file in open_files)}"
        return Diagnostic("wrong", what, said, f"chmod go= {names}")
    said = f"{data_dir} can be listed by other users, its files cannot be read"
    return Diagnostic("warning", what, said, f"chmod go= {shlex.quote(str(data_dir))}")


def _space(place: Path) -> Diagnostic:
    free_bytes = shutil.disk_usage(place).free
    said = f"{free_bytes >> 20} MiB are free"
    remedy = "Make room, or lower REATTACH_RETENTION_SECONDS."
    if free_bytes < _NO_BYTES:
        return Diagnostic("wrong", "disk space", said, remedy)
    if free_bytes < _LITTLE_BYTES:
        return Diagnostic("warning", "disk space", said, remedy)
    return Diagnostic("ok", "disk space", said)


def _owner(data_dir: Path) -> Diagnostic:
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDONLY)
    except OSError:
        return Diagnostic("ok", "data owner", "no server is using it")
    try:
        # Shared, and let go of at once: it only looks whether somebody owns it.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        return Diagnostic("ok", "data owner", f"the server of process {owner} is using it")
    finally:
        os.close(lock)
    return Diagnostic("ok", "data owner", "no server is using it")
