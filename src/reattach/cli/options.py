"""Options and helpers that several commands share."""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from reattach import __version__

if TYPE_CHECKING:
    from reattach.settings import Settings

Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings. (env: REATTACH_CONFIG)")
]
_STORE_FLAGS: Final[Mapping[str, Any]] = {
    "data_dir": Annotated[
        Path | None,
        typer.Option(help="Directory of the database files. (env: REATTACH_DATA_DIR)"),
    ],
    "database_url": Annotated[
        str | None,
        typer.Option(
            help="Database for records. Other users can see passwords in flags: prefer the "
            "environment or the settings file. (env: REATTACH_DATABASE_URL)"
        ),
    ],
    "log_url": Annotated[
        str | None, typer.Option(help="Store for event logs. (env: REATTACH_LOG_URL)")
    ],
    "config": Config,
}
StoreFlags = Mapping[str, Any]
"""The values of the flags that name the stores of a server, by the names of the settings."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def with_store_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flags that name the stores, in place of its parameter ``stores``."""
    flags = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, flag in _STORE_FLAGS.items()
    ]
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        parameters.extend(flags if parameter.name == "stores" else [parameter])

    @wraps(command)
    def run(**given: Any) -> None:
        stores: StoreFlags = {name: given.pop(name) for name in _STORE_FLAGS}
        command(stores=stores, **given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


def show_version(value: bool) -> None:
    """Print the version and exit if requested; the callback of ``--version``."""
    if value:
        typer.echo(f"reattach {__version__}")
        raise typer.Exit


def settings_with(**given: Any) -> "Settings":
    """Return the settings; flags that were given override the environment and the file.

    Raises StartupError if they are not valid.
    """
    from reattach.settings import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})


def records_url(settings: "Settings", *, makes: bool = True) -> str:
    """Return the URL of the records' database, whether or not a server is using it.

    Creates the data directory if the database is in it, unless ``makes`` is false. Raises
    StartupError.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    from reattach.server import datadir

    if makes:
        datadir.make(settings.data_dir)
    return datadir.records_url(settings.data_dir)
