"""What the commands have in common: flags that say where things are, and how a command fails."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from reattach.server import datadir
from reattach.settings import Settings

Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings.  [env: REATTACH_CONFIG]")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory that holds the databases.  [env: REATTACH_DATA_DIR]"),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Database of the records. Others can read a password in a flag: rather use the "
        "environment or the settings file.  [env: REATTACH_DATABASE_URL]"
    ),
]
LogUrl = Annotated[
    str | None, typer.Option(help="Store of the event logs.  [env: REATTACH_LOG_URL]")
]


AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def show_version(value: bool) -> None:
    """Print the version and end, if that was asked for; an option's callback."""
    if value:
        typer.echo(f"reattach {version('reattach')}")
        raise typer.Exit


def settings_with(**given: Any) -> Settings:
    """The settings, of which flags that were given win over the environment and the file."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


def records_url(settings: Settings, *, makes: bool = True) -> str:
    """The database of the records, whether or not a server is using it.

    If it is in the data directory, that is made, unless ``makes`` is false. Raises StartupError.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    if makes:
        datadir.make(settings.data_dir)
    return datadir.records_url(settings.data_dir)


def fail(text: str) -> NoReturn:
    """End the process with one line and status 1."""
    sys.stderr.write(f"reattach: {text}\n")
    raise SystemExit(1)
