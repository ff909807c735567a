"""The command line: ``reattach serve``, ``attach``, ``models``, ``keys``, ``db``, ``doctor``."""

import typer
from pydantic import ValidationError

from reattach.cli.db import db
from reattach.cli.doctor import doctor
from reattach.cli.following import attach
from reattach.cli.keys import keys
from reattach.cli.options import fail
from reattach.cli.serving import models, serve
from reattach.errors import ReattachError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reattach keeps an AI agent's answer alive when the connection dies.",
)
app.command()(serve)
app.command()(models)
app.command()(attach)
app.command()(doctor)
app.add_typer(keys, name="keys")
app.add_typer(db, name="db")


def main() -> None:
    """Run the command line; errors of ours end it with a line and status 1."""
    try:
        app()
    except ReattachError as error:
        fail(error.detail)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        fail("The settings are wrong. " + "; ".join(lines))
