"""The command line: ``reattach serve``, ``keys``, ``doctor`` and the other commands."""

from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from reattach.cli.callbacks import callbacks
from reattach.cli.db import db
from reattach.cli.doctor import doctor
from reattach.cli.following import attach
from reattach.cli.keys import keys
from reattach.cli.options import fail, show_version
from reattach.cli.serving import models, serve
from reattach.domain.errors import ReattachError
from reattach.settings import explain_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reattach keeps an AI agent's answer alive when the connection dies.",
)


@app.callback()
def reattach(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=show_version),
    ] = False,
) -> None:
    """Reattach keeps an AI agent's answer alive when the connection dies."""


app.command()(serve)
app.command()(models)
app.command()(attach)
app.command()(doctor)
app.add_typer(keys, name="keys")
app.add_typer(callbacks, name="callbacks")
app.add_typer(db, name="db")


def main() -> None:
    """Run the command line; errors of Reattach end it with one line and status 1."""
    try:
        app(prog_name="reattach")
    except ReattachError as error:
        fail(error.detail)
    except ValidationError as error:
        fail(f"The settings are not valid. {explain_settings(error)} Correct them and start again.")
    except SettingsError as error:  # A variable that holds JSON does not.
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        fail(f"The settings are not valid: {error}{cause}. Correct it and start again.")
