"""``reattach tenants``: the tenants of a server, their export and their deletion."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reattach.cli.keys import with_records
from reattach.cli.options import AsJson, StoreFlags, settings_with, with_store_flags
from reattach.cli.printable import counted, fail, one_line
from reattach.domain.clock import SystemClock, utc_text
from reattach.domain.ids import TenantId
from reattach.records.base import Actor

if TYPE_CHECKING:
    from reattach.records.records import Records
    from reattach.records.tenants.use import Use
    from reattach.server.tenants.deletion import Deletion

tenants = typer.Typer(no_args_is_help=True, help="List, export and delete tenants.")

_PAGE = 500

Tenant = Annotated[str, typer.Argument(help="Id of the tenant, from `reattach tenants list`.")]


@tenants.command("list")
@with_store_flags
def list_tenants(*, as_json: AsJson = False, stores: StoreFlags) -> None:
    """List all tenants with their use.

    Columns: id, agents, conversations, valid keys, active runs, runs and tokens of the last 24 h
    (prompt and completion), last run (to the minute, in UTC).
    """

    async def find(records: "Records") -> "list[Use]":
        found: list[Use] = []
        while page := await records.tenants.list(
            limit=_PAGE, after=found[-1].tenant if found else ""
        ):
            found += page
        return found

    settings = settings_with(**stores)
    found = with_records(settings, find, makes=False)
    if as_json:
        typer.echo(json.dumps([_json_of(use) for use in found]))
        return
    for use in found:
        last = f"last run {use.last_run_at:%Y-%m-%d %H:%M}" if use.last_run_at else "no run"
        columns = (
            use.tenant,
            counted(use.agents, "agent"),
            counted(use.conversations, "conversation"),
            counted(use.keys, "key"),
            counted(use.active_runs, "active run"),
            f"{counted(use.runs_last_day, 'run')} in 24 h",
            f"{use.prompt_tokens_last_day} + {use.completion_tokens_last_day} tokens in 24 h",
            last,
        )
        typer.echo("\t".join(map(one_line, columns)))
    if not found:
        typer.echo("No tenants exist: nobody has created an agent or a key yet.", err=True)


def _json_of(use: "Use") -> dict[str, Any]:
    from dataclasses import asdict

    last_run_at = None if use.last_run_at is None else utc_text(use.last_run_at)
    return asdict(use) | {"last_run_at": last_run_at}


@tenants.command("export")
@with_store_flags
def export_tenant(
    *,
    tenant: Tenant,
    output: Annotated[
        str, typer.Option("--output", "-o", help="New file; '-' is standard output.")
    ] = "-",
    stores: StoreFlags,
) -> None:
    """Write everything of a tenant as JSON Lines, also while servers run.

    The lines are agents, blocks, conversations, runs, messages, events of the logs that still
    exist, keys without secrets, and others. docs/operate.md explains them.
    """
    from reattach.server.tenants.export import export_tenant as export
    from reattach.server.tenants.logs import readable_log

    settings = settings_with(**stores)
    with _writing(output) as write:

        async def run(records: "Records") -> dict[str, int]:
            counts = await export(
                records,
                partial(readable_log, settings),
                TenantId(tenant),
                write,
                by=Actor.of_command_line(),
                now=SystemClock().now(),
            )
            return dict(counts)

        counts = with_records(settings, run, makes=False)
    lines = ", ".join(
        counted(count, kind.replace("_", " ")) for kind, count in counts.items() if kind != "export"
    )
    typer.echo(f"Exported the tenant {tenant}: {lines}.", err=True)


@contextmanager
def _writing(output: str) -> "Iterator[Callable[[bytes], object]]":
    """Open standard output, or a new file with mode 0600 that appears when it is complete."""
    if output == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    target = Path(output)
    if target.exists():
        fail(f"{target} exists. Name a new file with --output.")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(target)
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}. Check its directory and disk.")
    finally:
        unfinished.unlink(missing_ok=True)


@tenants.command("delete")
@with_store_flags
def delete_tenant(
    *,
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    cancel_runs: Annotated[
        bool, typer.Option("--cancel-runs", help="Cancel active runs instead of refusing.")
    ] = False,
    as_json: AsJson = False,
    stores: StoreFlags,
) -> None:
    """Delete everything of a tenant, for ever; its keys stop working first.

    Export it before if you may need it again. Repeat the command if it was interrupted. A tenant of
    which nothing exists is an error.
    """
    settings = settings_with(**stores)
    if not yes:
        _confirm(tenant)

    async def run(records: "Records") -> "Deletion":
        from reattach.server.tenants.deletion import delete_tenant as delete
        from reattach.server.tenants.logs import own_log

        async with own_log(settings) as log:
            has_servers = log is None
            if records.shared:
                has_servers = any(one.has_lease for one in await records.owners.reports())
            return await delete(
                records,
                log,
                TenantId(tenant),
                SystemClock(),
                by=Actor.of_command_line(),
                cancels=cancel_runs,
                has_servers=has_servers,
                on_progress=_show_progress,
            )

    deletion = with_records(settings, run, makes=False)
    rows, left = dict(deletion.rows), deletion.are_logs_left
    if as_json:
        answer = {"tenant": tenant, "rows": rows, "logs": deletion.logs, "logs_left": left}
        typer.echo(json.dumps(answer))
    counts = ", ".join(counted(count, _singular(name)) for name, count in rows.items())
    logs = counted(deletion.logs, "event log")
    typer.echo(
        f"Deleted the tenant {tenant}: {counts}. The running server deletes its {logs} within a "
        "minute."
        if left
        else f"Deleted the tenant {tenant}: {counts}, and {logs}.",
        err=True,
    )


def _singular(table: str) -> str:
    """Return the noun for one row of a table."""
    return "audit entry" if table == "audit_log" else table.replace("_", " ").removesuffix("s")


def _confirm(tenant: str) -> None:
    if not sys.stdin.isatty():
        fail("Nobody can confirm the deletion here. Repeat the command with --yes.")
    typed = typer.prompt(f"Type {tenant} to delete everything of it", err=True)
    if typed.strip() != tenant:
        fail("The names differ, so nothing was deleted.")


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
