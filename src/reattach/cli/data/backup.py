"""``reattach backup`` and ``reattach restore``."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags
from reattach.cli.printable import counted, fail
from reattach.cli.remote.tables import size_text

if TYPE_CHECKING:
    from reattach.server.backup.manifest import Manifest
    from reattach.settings import Settings


@with_store_flags
def backup(
    *,
    dest: Annotated[Path, typer.Argument(help="New directory for the backup.")],
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Copy the data directory, also while a server uses it, and check the copy.

    The backup is a directory with both databases and a manifest. It has the hashes of API keys and
    the secrets that sign stream tokens and callbacks: keep it as safe as the data directory.
    """
    settings = settings_with(**stores)
    if settings.stores is not None:
        _refuse_shared_stores("backup")
    from reattach.server.backup.backup import make_backup

    with _progress("copied") as on_step:
        manifest = make_backup(settings.data_dir, dest, on_step)
    _note(settings, manifest, "BACKUP_MADE")
    _show(manifest, as_json=as_json)
    restore_command = f"reattach restore {dest} --data-dir NEW"
    typer.echo(f"The backup {dest} is complete and checked. `{restore_command}`", err=True)


@with_store_flags
def restore(
    *,
    src: Annotated[Path, typer.Argument(help="Directory that `reattach backup` has made.")],
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Restore a backup into an empty data directory that no server uses.

    Runs that were open in the backup end at the first start of a server; ended runs and
    conversations are as they were. Keys and tokens that were revoked since then are valid again.
    """
    settings = settings_with(**stores)
    if settings.stores is not None:
        _refuse_shared_stores("restore")
    from reattach.server.backup.restore import restore_backup

    with _progress("restored") as on_step:
        manifest = restore_backup(src, settings.data_dir, on_step)
    _note(settings, manifest, "BACKUP_RESTORED")
    _show(manifest, as_json=as_json)
    typer.echo(
        f"Restored the backup of {manifest.began_at:%Y-%m-%d %H:%M:%S} UTC into "
        f"{settings.data_dir}. Start it with `{settings.command('serve')}`.",
        err=True,
    )


def _refuse_shared_stores(command: str) -> NoReturn:
    tools = (
        "Use pg_dump first and then copy the RDB or AOF file of Redis: runs whose logs are missing "
        "end properly."
        if command == "backup"
        else "Use pg_restore, and put the RDB or AOF file of Redis in place before it starts."
    )
    fail(
        f"`reattach {command}` is for a data directory, and these settings name PostgreSQL and "
        f"Redis. {tools}"
    )


@contextmanager
def _progress(verb: str) -> "Iterator[Callable[[str, int, int], None]]":
    """Show one line that grows on a terminal, and otherwise one line for each file."""
    is_terminal = sys.stderr.isatty()
    shown: dict[str, int] = {}

    def on_step(name: str, done_bytes: int, all_bytes: int) -> None:
        percent = 100 * done_bytes // max(all_bytes, 1)
        if percent == shown.get(name) or (not is_terminal and percent < 100):
            return
        shown[name] = percent
        line = f"{name}: {verb} {size_text(done_bytes)} of {size_text(all_bytes)} ({percent} %)"
        sys.stderr.write(f"\r{line}" if is_terminal else f"{line}\n")
        if is_terminal and percent == 100:
            sys.stderr.write("\n")
        sys.stderr.flush()

    yield on_step


def _show(manifest: "Manifest", *, as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(manifest).decode())
        return
    for file in manifest.files:
        rows = sum(file.rows.values())
        typer.echo(f"{file.name}\t{file.bytes} bytes\t{counted(rows, 'row')}\tsha256 {file.sha256}")


def _note(settings: "Settings", manifest: "Manifest", action: str) -> None:
    """Write an entry into the audit log, unless this version would first upgrade its schema."""
    from reattach.cli.keys import with_records
    from reattach.domain.errors import ReattachError
    from reattach.records.audit_log import Action
    from reattach.records.base import Actor
    from reattach.records.database.migrations import HEAD
    from reattach.records.records import Records

    if manifest.revision != HEAD:
        return

    async def add(records: Records) -> bool:
        await records.audit_log.add(
            Actor.of_command_line(),
            Action[action],
            bytes=manifest.size_bytes,
            version=manifest.version,
            began_at=manifest.began_at.isoformat(),
        )
        return True

    try:
        with_records(settings, add, makes=False)
    except ReattachError as error:  # The files are complete; only the entry is missing.
        typer.echo(f"The audit log has no entry about this: {error.detail}", err=True)
