"""Options and helpers that several commands share."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from reattach.server import datadir
from reattach.settings import Settings

Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings. (env: REATTACH_CONFIG)")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory of the database files. (env: REATTACH_DATA_DIR)"),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Database for records. Other users can see passwords in flags: prefer the "
        "environment or the settings file. (env: REATTACH_DATABASE_URL)"
    ),
]
LogUrl = Annotated[str | None, typer.Option(help="Store for event logs. (env: REATTACH_LOG_URL)")]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def show_version(value: bool) -> None:
    """Print the version and exit if requested; the callback of ``--version``."""
    if value:
        typer.echo(f"reattach {version('reattach')}")
        raise typer.Exit


def settings_with(**given: Any) -> Settings:
    """Return the settings; flags that were given override the environment and the file."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


def records_url(settings: Settings, *, makes: bool = True) -> str:
    """Return the URL of the records' database, whether or not a server is using it.

    Creates the data directory if the database is in it, unless ``makes`` is false. Raises
    StartupError.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    if makes:
        datadir.make(settings.data_dir)
    return datadir.records_url(settings.data_dir)


def fail(text: str) -> NoReturn:
    """Exit with one line on standard error and status 1."""
    sys.stderr.write(f"reattach: {text}\n")
    raise SystemExit(1)
