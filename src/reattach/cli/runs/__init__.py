"""``reattach runs``: the runs of a server, asked over HTTP."""

import typer

from reattach.cli.runs.cancel import cancel_runs
from reattach.cli.runs.details import show_run
from reattach.cli.runs.listing import list_runs
from reattach.cli.runs.tail import tail_runs

runs = typer.Typer(no_args_is_help=True, help="List, show, cancel and tail the runs of a server.")

runs.command("list")(list_runs)
runs.command("show")(show_run)
runs.command("cancel")(cancel_runs)
runs.command("tail")(tail_runs)
