"""All commands of the command line, with Typer."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from reattach.cli.callbacks import callbacks
from reattach.cli.data.backup import backup, restore
from reattach.cli.data.tenants import tenants
from reattach.cli.db import db
from reattach.cli.doctor import doctor
from reattach.cli.following import attach
from reattach.cli.keys import keys
from reattach.cli.options import show_version
from reattach.cli.runs import runs
from reattach.cli.serving import models, serve
from reattach.cli.tokens import tokens
from reattach.cli.top.command import top


class _Commands(TyperGroup):
    """Explains values of the wrong type as those of settings are explained."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            cause: Any = error.__cause__
            if hasattr(cause, "errors"):  # Of Pydantic, with which Typer checks values.
                from reattach.validation import explain

                error.message = explain(cause.errors()[0])
            raise


app = typer.Typer(
    cls=_Commands,
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
app.command()(backup)
app.command()(restore)
app.command()(top)
app.add_typer(runs, name="runs")
app.add_typer(keys, name="keys")
app.add_typer(callbacks, name="callbacks")
app.add_typer(tokens, name="tokens")
app.add_typer(tenants, name="tenants")
app.add_typer(db, name="db")
