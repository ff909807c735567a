"""The data directory of one process: two database files, and the lock of their owner."""

import errno
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import StartupError
from reattach.server.boot import BootId, boot_id

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "The server runs on Linux and macOS. On Windows, run it inside WSL; the Python client, "
        "reattach.client, also runs without WSL."
    ) from error

_LITTLE_BYTES: Final = 1 << 30
"""Free space that a busy server may fill in an hour: each event of a stream takes about 300
bytes."""
_NO_BYTES: Final = 16 << 20
"""Free space that is hardly enough to create a database."""

_FILE_MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
"""The permissions of everybody except the owner."""

_LOCK_NAME: Final = "reattach.lock"
_BOOT_NAME: Final = "reattach.boot"
_RESTORING_NAME: Final = "reattach.restoring"
"""Exists while a backup is being restored, and after a restoration that did not finish."""
_OF_THE_FILE_SYSTEM: Final = "lost+found"
"""A directory at the root of a mounted disk."""
_UNKNOWN: Final = "unknown"

_opened: Final[set[Path]] = set()
"""The directories that this process has locked."""


def events_file(data_dir: Path) -> Path:
    """Return the file that holds the event logs."""
    return data_dir / "events.db"


def records_file(data_dir: Path) -> Path:
    """Return the file that holds everything else.

    It is separate because SQLite has one write lock per file, and events must not wait for records.
    """
    return data_dir / "records.db"


def records_url(data_dir: Path) -> str:
    """Return the URL of the database in ``records_file``."""
    return f"sqlite:///{records_file(data_dir)}"


def log_url(data_dir: Path, *, durability: str) -> str:
    """Return the URL of the log in ``events_file``; ``durability`` is the setting."""
    return f"sqlite:{quote(str(events_file(data_dir)))}?durability={durability}"


def make(data_dir: Path) -> None:
    """Create the directory and its databases, readable by their owner only, if they are missing.

    Removes other users' permissions on existing databases that this user owns; SQLite gives the
    files beside a database the same mode. Leaves the mode of an existing directory unchanged.

    Raises:
        StartupError: The directory cannot be created or written to.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The data directory {data_dir} cannot be created: {error.strerror}.",
            remedy="Name another one with --data-dir or REATTACH_DATA_DIR.",
        ) from error
    for file in (events_file(data_dir), records_file(data_dir)):
        # Existing files are not opened: closing one would drop this process's SQLite locks.
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
    """Return whether the directory has a non-empty database of records."""
    return _has_content(records_file(data_dir))


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _files(data_dir: Path) -> list[Path]:
    """Return the files of Reattach in the directory."""
    databases = [events_file(data_dir), records_file(data_dir)]
    names = [f"{file.name}{suffix}" for file in databases for suffix in ("", "-wal", "-shm")]
    found = [data_dir / name for name in (*names, _LOCK_NAME, _BOOT_NAME)]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def _unwritable(data_dir: Path, error: OSError) -> StartupError:
    return StartupError(
        f"The data directory {data_dir} cannot be written to: {error.strerror}.",
        remedy=_remedy_of(error),
    )


def _remedy_of(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        first = "Free disk space"
    elif error.errno == errno.EROFS:
        first = "Mount its file system for writing"
    else:
        first = "Make the user that runs the server its owner"
    return f"{first}, or name another directory with --data-dir."


@contextmanager
def lock(data_dir: Path, *, restores: bool = False) -> Iterator[None]:
    """Own the directory until the context exits or the process dies.

    The kernel releases the lock of a killed process. Raises StartupError if the directory is owned
    already, by another process or by this one, and unless this process ``restores`` a backup, if
    the restoration of one did not finish.
    """
    make(data_dir)
    place = data_dir.resolve()
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT, _FILE_MODE)
    except OSError as error:
        raise _unwritable(data_dir, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if place in _opened:
                raise StartupError(
                    f"This process has already opened the data directory {data_dir}.",
                    remedy="Use the Reattach that has opened it, or pass another data_dir.",
                ) from None
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartupError(
                f"Another server (process {owner}) is using the data directory {data_dir}.",
                remedy="Stop it, or give this server a directory of its own with --data-dir.",
            ) from None
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode("ascii"), 0)
        except OSError as error:
            raise _unwritable(data_dir, error) from error
        if is_being_restored(data_dir) and not restores:
            raise StartupError(
                f"The restoration of a backup into the data directory {data_dir} failed or was "
                "interrupted.",
                remedy="Run `reattach restore` again, or remove the directory to begin without "
                "the backup.",
            )
        _opened.add(place)
        try:
            yield
        finally:
            _opened.discard(place)
    finally:
        os.close(lock)


def is_empty_part(file: Path) -> bool:
    """Return whether an entry of the directory holds no data that a restoration would mix with."""
    if file.name in {_LOCK_NAME, _RESTORING_NAME, _OF_THE_FILE_SYSTEM}:
        return True
    databases = (events_file(file.parent).name, records_file(file.parent).name)
    return file.name in databases and not _has_content(file)


def is_being_restored(data_dir: Path) -> bool:
    """Return whether a backup is being restored, or its restoration did not finish."""
    return (data_dir / _RESTORING_NAME).exists()


def begin_restoration(data_dir: Path) -> None:
    """Keep servers from using the directory until ``end_restoration``, also after a crash."""
    (data_dir / _BOOT_NAME).unlink(missing_ok=True)  # A new server must expect missing events.
    os.close(os.open(data_dir / _RESTORING_NAME, os.O_RDWR | os.O_CREAT, _FILE_MODE))
    _sync(data_dir)


def end_restoration(data_dir: Path) -> None:
    """Let servers use the directory."""
    (data_dir / _RESTORING_NAME).unlink(missing_ok=True)
    _sync(data_dir)


def _sync(data_dir: Path) -> None:
    """Wait until the names in the directory are on the disk."""
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_held(data_dir: Path) -> bool:
    """Return whether a process owns the directory now."""
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def may_lack_events(data_dir: Path, boot: BootId = boot_id) -> bool:
    """Return whether a power cut may have lost writes that the stores acknowledged.

    That is possible if the last owner did not wait for the disk and the machine has booted since,
    or if either is unknown. Call ``note_boot`` once the stores have taken the result into account.
    """
    if not _has_content(events_file(data_dir)) and not has_records(data_dir):
        return False
    noted_boot, durability = _read_boot_note(data_dir)
    return durability != "power" and (noted_boot is None or noted_boot != boot())


def note_boot(data_dir: Path, durability: str, boot: BootId = boot_id) -> None:
    """Record the current boot and the durability with which the stores are written from now on.

    Within one boot the weaker durability is kept, because what was written with it may not be on
    the disk yet.
    """
    present = boot()
    noted_boot, noted_durability = _read_boot_note(data_dir)
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
            f"The file {file} cannot be written: {error.strerror}.",
            remedy="Free space on the disk, and make the user that runs the server the owner of "
            "the data directory.",
        ) from error


def _read_boot_note(data_dir: Path) -> tuple[str | None, str | None]:
    """Return the boot id and the durability that were recorded last; None if unknown."""
    try:
        words = (data_dir / _BOOT_NAME).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None, None
    if len(words) != 2:
        return None, None
    return None if words[0] == _UNKNOWN else words[0], words[1]


def check(data_dir: Path) -> list[Diagnostic]:
    """Check the directory for the doctor, without leaving or locking anything."""
    what = "data directory"
    place = data_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        remedy = "Name another directory with --data-dir."
        return [Diagnostic("wrong", what, f"{place} is not a directory", remedy)]
    try:  # The permissions alone do not say: the disk may be full or read-only, or no disk at all.
        TemporaryDirectory(prefix=".reattach-", dir=place).cleanup()
    except OSError as error:
        detail = f"{place} is not writable: {error.strerror}"
        return [Diagnostic("wrong", what, detail, _remedy_of(error))]
    exists = place == data_dir
    detail = f"{data_dir} {'is writable' if exists else 'does not exist yet and can be created'}"
    diagnostics = [Diagnostic("ok", what, detail), _space(place), _owner(data_dir)]
    return [*diagnostics, *_restoration(data_dir), _access(data_dir)] if exists else diagnostics


def _access(data_dir: Path) -> Diagnostic:
    """Check whether other users of the machine can read the data."""
    what = "data access"
    if not data_dir.stat().st_mode & _OTHERS:
        return Diagnostic("ok", what, "only its owner can read it")
    open_files = [file for file in _files(data_dir) if file.stat().st_mode & _OTHERS]
    if open_files:
        names = " ".join(shlex.quote(str(file)) for file in open_files)
        detail = f"other users can read {', '.join(file.name for file in open_files)}"
        return Diagnostic("wrong", what, detail, f"Run: chmod go= {names}")
    detail = f"other users can list {data_dir}, but not read its files"
    return Diagnostic("warning", what, detail, f"Run: chmod go= {shlex.quote(str(data_dir))}")


def _space(place: Path) -> Diagnostic:
    free_bytes = shutil.disk_usage(place).free
    detail = f"{free_bytes >> 20} MiB free"
    remedy = "Free disk space, or lower REATTACH_RETENTION_SECONDS."
    if free_bytes < _NO_BYTES:
        return Diagnostic("wrong", "disk space", detail, remedy)
    if free_bytes < _LITTLE_BYTES:
        return Diagnostic("warning", "disk space", detail, remedy)
    return Diagnostic("ok", "disk space", detail)


def _restoration(data_dir: Path) -> list[Diagnostic]:
    """Report a backup that the directory does not have as a whole."""
    if not is_being_restored(data_dir):
        return []
    detail = f"the restoration of a backup into {data_dir} has not finished: no server starts on it"
    remedy = "Wait for `reattach restore`, or run it again if it failed or was interrupted."
    return [Diagnostic("wrong", "restoration", detail, remedy)]


def _owner(data_dir: Path) -> Diagnostic:
    try:
        lock = os.open(data_dir / _LOCK_NAME, os.O_RDONLY)
    except OSError:
        return Diagnostic("ok", "data owner", "no server is using it")
    try:
        # A shared lock, released at once: it only tests whether another process has the lock.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        return Diagnostic("ok", "data owner", f"the server of process {owner} is using it")
    finally:
        os.close(lock)
    return Diagnostic("ok", "data owner", "no server is using it")
