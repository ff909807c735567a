"""The restoration of a backup into an empty data directory.

A server that finds the restored files starts as after a power cut: it does not continue the runs
that were open in the backup, because their events went on elsewhere, and ends them.
"""

import os
import shutil
from pathlib import Path

from reattach.domain.errors import StartupError
from reattach.log.sqlite.tables import LAYOUT
from reattach.records.database import migrations
from reattach.server import datadir
from reattach.server.backup.manifest import (
    BackupFile,
    Manifest,
    read_manifest,
    sha256_of,
    sync_directory,
)
from reattach.server.backup.snapshot import OnStep


def restore_backup(source: Path, data_dir: Path, on_step: OnStep = lambda *_: None) -> Manifest:
    """Copy the databases of the backup into the data directory.

    If this fails or is interrupted, no server starts on the directory until a restoration has
    finished: it would be empty, and new data would keep the backup from being restored.

    Raises:
        StartupError: The backup is damaged, incomplete or too new, a server uses the directory, it
            has data, or its disk is full. Nothing of the backup is in the directory then.
    """
    manifest = read_manifest(source)
    _check(manifest, source)
    with datadir.lock(data_dir, restores=True):
        if not datadir.is_being_restored(data_dir):
            _require_empty(data_dir)
        datadir.begin_restoration(data_dir)
        try:
            _require_space(manifest, data_dir)
            for file in manifest.files:
                _copy(source / file.name, file, data_dir, on_step)
        except BaseException:
            _empty(manifest, data_dir)
            raise
        sync_directory(data_dir)
        datadir.end_restoration(data_dir)
    return manifest


def _check(manifest: Manifest, source: Path) -> None:
    """Raise StartupError unless this version can use the backup and its files are as written."""
    migrations.refuse_newer(manifest.revision)
    if manifest.log_layout not in (None, LAYOUT):
        raise StartupError(
            f"The events of the backup {source} have layout {manifest.log_layout}, and this "
            f"version of Reattach reads only layout {LAYOUT}.",
            remedy=f"Restore it with Reattach {manifest.version}.",
        )
    expected = {"records.db", "events.db"}
    if {file.name for file in manifest.files} != expected:
        raise StartupError(
            f"The backup {source} does not name exactly the files {', '.join(sorted(expected))}.",
            remedy="Use another backup.",
        )
    for file in manifest.files:
        try:
            size_bytes = (source / file.name).stat().st_size
        except OSError as error:
            raise StartupError(
                f"{file.name} of the backup {source} cannot be read: {error.strerror}.",
                remedy="Check its permissions, or use another backup.",
            ) from error
        if size_bytes != file.bytes:
            raise _damaged(source / file.name)


def _damaged(file: Path) -> StartupError:
    return StartupError(
        f"{file} is not the file that was backed up: its size or SHA-256 differs from the "
        "manifest.",
        remedy="Copy the backup again from where it is kept, or use another one.",
    )


def _require_empty(data_dir: Path) -> None:
    found = sorted(one.name for one in data_dir.iterdir() if not datadir.is_empty_part(one))
    if found:
        raise StartupError(
            f"The data directory {data_dir} is not empty: it has {', '.join(found[:5])}.",
            remedy="Restore into a new directory with --data-dir, or move the present one away.",
        )


def _require_space(manifest: Manifest, data_dir: Path) -> None:
    free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes < manifest.size_bytes:
        raise StartupError(
            f"The backup needs {manifest.size_bytes >> 20} MiB, and the disk of {data_dir} has "
            f"{free_bytes >> 20} MiB free.",
            remedy="Free space there, or restore into a directory on another disk.",
        )


def _copy(source: Path, file: BackupFile, data_dir: Path, on_step: OnStep) -> None:
    """Copy one file and wait until it is on the disk. The digest is that of the copied bytes."""
    target = data_dir / file.name
    copied_bytes = 0
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:

            def write(block: bytes) -> None:
                nonlocal copied_bytes
                opened.write(block)
                copied_bytes += len(block)
                on_step(file.name, copied_bytes, file.bytes)

            digest = sha256_of(source, write)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise StartupError(
            f"{target} cannot be written: {error.strerror}.",
            remedy="Make this user the owner of the data directory, and free space on its disk.",
        ) from error
    if digest != file.sha256:
        raise _damaged(source)


def _empty(manifest: Manifest, data_dir: Path) -> None:
    """Remove the files of a restoration that failed."""
    for file in manifest.files:
        (data_dir / file.name).unlink(missing_ok=True)
