"""``reattach db``: the schema of the records' database."""

import json

import typer

from reattach.cli.options import AsJson, StoreFlags, records_url, settings_with, with_store_flags

db = typer.Typer(no_args_is_help=True, help="Show and upgrade the schema of the records' database.")


@db.command("upgrade")
@with_store_flags
def upgrade_database(*, as_json: AsJson = False, stores: StoreFlags) -> None:
    """Upgrade the schema to what this version needs; safe to run several times at once."""
    from reattach.records.database.database import upgrade
    from reattach.records.database.failure import explain_startup_failures
    from reattach.server.tune_gc import tune_gc

    tune_gc()  # Migrations of a large database take long.
    url = records_url(settings_with(**stores))
    with explain_startup_failures(url):
        done = upgrade(url)
    if as_json:
        typer.echo(json.dumps({"before": done.before, "after": done.after}))
    elif done.before == done.after:
        typer.echo(f"The database is up to date: revision {done.after}.")
    else:
        typer.echo(f"Upgraded the database: {done.before or 'no schema'} -> {done.after}.")


@db.command("status")
@with_store_flags
def show_status(*, as_json: AsJson = False, stores: StoreFlags) -> None:
    """Show the present and the needed revision of the schema; status 1 if they differ."""
    import asyncio

    from reattach.records.database.failure import explain_startup_failures
    from reattach.records.database.revision import find_revision

    settings = settings_with(**stores)
    url = records_url(settings, makes=False)
    with explain_startup_failures(url):
        revision = asyncio.run(find_revision(url, upgrade=settings.command("db upgrade")))
    if as_json:
        typer.echo(json.dumps({"present": revision.present, "needed": revision.needed}))
    else:
        typer.echo(f"present\t{revision.present or 'no schema'}\nneeded\t{revision.needed}")
    if revision.present != revision.needed:
        typer.echo(revision.remedy, err=True)
        raise typer.Exit(1)
