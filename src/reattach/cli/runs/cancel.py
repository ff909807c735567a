"""``reattach runs cancel``: ends runs of a server."""

import json
from typing import Annotated, Final
from urllib.parse import quote

import typer

from reattach.cli.options import AsJson
from reattach.cli.printable import printable, sentence_of
from reattach.cli.remote.completion import active_run_ids
from reattach.cli.remote.server import RemoteServer, with_server_flags
from reattach.domain.errors import ReattachError

_OF_ONE_RUN: Final = frozenset({400, 404})
"""Statuses of an id that is malformed or unknown; the other runs can be cancelled nevertheless."""


@with_server_flags
def cancel_runs(
    *,
    run_id: Annotated[
        list[str],
        typer.Argument(
            help="Ids of runs; `-` reads them from standard input, one a line.",
            autocompletion=active_run_ids,
        ),
    ],
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """Cancel runs, and show the resulting status of each.

    A run that has already ended keeps its status. 'cancelling' means that its end takes longer
    than the server waits; the request is kept, and the run will end. Status 1 if a run does not
    exist; the others are cancelled nevertheless.
    """
    statuses: dict[str, str] = {}
    missing: list[str] = []
    for one in _ids_of(run_id):
        try:
            statuses |= server.send(
                "POST", f"/v1/runs/{quote(one, safe='')}/cancel", dict[str, str]
            )
        except ReattachError as error:
            if error.status not in _OF_ONE_RUN:
                raise
            missing.append(one)
            typer.echo(f"reattach: {printable(sentence_of(error))}", err=True)
            continue
        if not as_json:
            typer.echo(f"{one}\t{statuses.get(one, 'unknown')}")
    if as_json:
        typer.echo(json.dumps({"statuses": statuses, "not_found": missing}))
    if missing:
        raise typer.Exit(1)


def _ids_of(given: list[str]) -> list[str]:
    """Return the ids, each once. Raises typer.BadParameter if there are none."""
    lines = typer.get_text_stream("stdin").read().split() if "-" in given else []
    ids = list(dict.fromkeys([*(one for one in given if one != "-"), *lines]))
    if not ids:
        raise typer.BadParameter("Standard input has no ids of runs.")
    return ids
