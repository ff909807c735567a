"""The backup of a data directory while a server uses it.

The records are copied as they are before the events are: a log that the records do not know yet is
deleted after its retention, but an ended run without its events would have lost them.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from reattach import __version__
from reattach.domain.errors import StartupError
from reattach.server import datadir
from reattach.server.backup.manifest import (
    FORMAT,
    BackupFile,
    Manifest,
    sha256_of,
    sync_directory,
    write_manifest,
)
from reattach.server.backup.snapshot import OnStep, Snapshot, explaining, snapshot

_SPARE_BYTES: Final = 1 << 20


def make_backup(data_dir: Path, target: Path, on_step: OnStep = lambda *_: None) -> Manifest:
    """Copy the databases of the directory into the new directory ``target``.

    ``target`` appears complete or not at all. The copied files are on the disk when this returns.

    Raises:
        StartupError: There is nothing to copy, ``target`` is not empty, or a disk is full or
            damaged. Nothing is left behind.
    """
    began_at = datetime.now(UTC)
    if not datadir.has_records(data_dir):
        raise StartupError(
            f"The data directory {data_dir} has no records.",
            remedy="Check --data-dir, or REATTACH_DATA_DIR.",
        )
    if target.resolve().is_relative_to(data_dir.resolve()):
        raise StartupError(
            f"{target} is in the data directory {data_dir}, with which it would be lost.",
            remedy="Name a directory outside it, best on another disk.",
        )
    with (
        _new_directory(target) as unfinished,
        snapshot(datadir.records_file(data_dir)) as records,
    ):
        on_step(records.file.name, 0, records.size_bytes)
        with snapshot(datadir.events_file(data_dir)) as events:
            revision = _revision_of(records)
            layout = _layout_of(events)
            files = _copy([records, events], unfinished, on_step)
        manifest = Manifest(
            FORMAT, __version__, revision, layout, began_at, datetime.now(UTC), files
        )
        write_manifest(manifest, unfinished)
    return manifest


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """Make a directory that becomes ``target`` when the context exits without an error."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StartupError(
            f"{target} exists and is not empty.",
            remedy="Name a new directory, for example one with the date in its name.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield unfinished
        unfinished.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> StartupError:
    return StartupError(
        f"The backup {target} cannot be written: {error.strerror}.",
        remedy="Name a directory on a disk with space that this user may write to.",
    )


def _copy(
    snapshots: Sequence[Snapshot], directory: Path, on_step: OnStep
) -> tuple[BackupFile, ...]:
    needed_bytes = sum(one.size_bytes for one in snapshots) + _SPARE_BYTES
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise StartupError(
            f"The backup needs {needed_bytes >> 20} MiB, and its disk has {free_bytes >> 20} MiB "
            "free.",
            remedy="Free space there, or name a directory on another disk.",
        )
    files: list[BackupFile] = []
    for one in snapshots:
        copy = directory / one.file.name
        with explaining(one.file):
            one.copy_to(copy, on_step)
        size_bytes = copy.stat().st_size
        files.append(BackupFile(copy.name, size_bytes, sha256_of(copy), one.as_of, one.rows))
    return tuple(files)


def _revision_of(records: Snapshot) -> str:
    if "alembic_version" not in records.rows:
        raise StartupError(
            f"{records.file} has no schema of Reattach.",
            remedy="Check --data-dir, or REATTACH_DATA_DIR.",
        )
    return str(records.value("SELECT version_num FROM alembic_version"))


def _layout_of(events: Snapshot) -> int | None:
    if "log_meta" not in events.rows:
        return None  # A key was created, but no server has started yet.
    found: int | None = events.value("SELECT value FROM log_meta WHERE key = 'layout'")
    return found
