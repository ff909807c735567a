"""The manifest of a backup: which files it has, and how to recognise damage."""

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from reattach.domain.errors import StartupError

MANIFEST: Final = "manifest.json"

FORMAT: Final = 1
"""Increased by changes that an older version cannot read."""

_BLOCK_BYTES: Final = 1 << 20


class BackupFile(msgspec.Struct, frozen=True):
    """One database file of a backup."""

    name: str
    bytes: int
    sha256: str
    as_of: datetime
    """The time of the state that it has."""
    rows: Mapping[str, int]
    """The number of rows of each table."""


class Manifest(msgspec.Struct, frozen=True):
    """The description of a backup, which is written last."""

    format: int
    version: str
    """The version of Reattach that made it."""
    revision: str
    """The revision of the schema of the records."""
    log_layout: int | None
    """The layout of the event log; None if no server has written one yet."""
    began_at: datetime
    ended_at: datetime
    files: tuple[BackupFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.bytes for file in self.files)


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write the manifest into the directory, and wait until it is on the disk."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    descriptor = os.open(directory / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a backup.

    Raises:
        StartupError: The directory has no manifest, or one that this version cannot read.
    """
    try:
        text = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise StartupError(
            f"{directory} is no complete backup: {MANIFEST} cannot be read ({error.strerror}).",
            remedy="Name the directory that `reattach backup` has made.",
        ) from error
    try:
        if msgspec.json.decode(text, type=_Format).format > FORMAT:
            raise StartupError(
                f"The backup {directory} has a format that this version of Reattach cannot read.",
                remedy="Upgrade Reattach to the version that made the backup, or a newer one.",
            )
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise StartupError(
            f"{MANIFEST} of the backup {directory} is damaged: {error}.",
            remedy="Use another backup.",
        ) from error


class _Format(msgspec.Struct):
    format: int


def sha256_of(file: Path, on_block: Callable[[bytes], object] = lambda _: None) -> str:
    """Return the SHA-256 of a file, and call ``on_block`` with each piece of it."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
            on_block(block)
    return digest.hexdigest()


def sync_directory(directory: Path) -> None:
    """Wait until the names in the directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
