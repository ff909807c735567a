"""``reattach runs list``: the newest runs of a server."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

import typer

from reattach.cli.options import AsJson
from reattach.cli.printable import one_line
from reattach.cli.remote.answers import RunPage
from reattach.cli.remote.completion import agent_ids, conversation_ids, model_handles
from reattach.cli.remote.server import RemoteServer, with_server_flags
from reattach.cli.remote.tables import (
    Column,
    count_text,
    duration_text,
    lag_text,
    seconds_since,
    show_rows,
)
from reattach.domain.events import RunStatus

_PAGE_ITEMS: Final = 100
_MOST_RUNS: Final = 10_000
_PREVIEW_CHARS: Final = 60

_COLUMNS: Final = (
    Column("RUN", is_whole=True),
    Column("STATUS"),
    Column("MODEL", rank=3),
    Column("EVENTS", is_number=True),
    Column("RATE", is_number=True, rank=4),
    Column("FIRST", is_number=True, rank=5),
    Column("AGE", is_number=True),
    Column("ATT", is_number=True, rank=6),
    Column("READERS", is_number=True, rank=1),
    Column("AGENT", rank=7),
    Column("TENANT", is_hidden=True, rank=2),
    Column("INPUT", rank=8),
)

OfModel = Annotated[
    str | None, typer.Option(help="Only runs of this model.", autocompletion=model_handles)
]
OfAgent = Annotated[
    str | None, typer.Option(help="Only runs of this agent.", autocompletion=agent_ids)
]
OfConversation = Annotated[
    str | None,
    typer.Option(help="Only runs of this conversation.", autocompletion=conversation_ids),
]


@with_server_flags
def list_runs(
    *,
    status: Annotated[
        list[RunStatus] | None, typer.Option(help="Only runs with this status; repeatable.")
    ] = None,
    active: Annotated[
        bool, typer.Option("--active", help="Only runs that have not ended.")
    ] = False,
    model: OfModel = None,
    agent_id: OfAgent = None,
    conversation_id: OfConversation = None,
    query: Annotated[
        str | None, typer.Option(help="Part of an id or of the text that was sent.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Only runs of this tenant, with a key of scope 'operator'.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MOST_RUNS)] = 20,
    after: Annotated[str | None, typer.Option(help="Id of a run; lists those before it.")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only ids, for `runs cancel -`.")
    ] = False,
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """List runs, the newest first, also those of all tenants with a key of scope 'operator'.

    Columns: id, status, model, events, events per second, time to the first event, age, attempts,
    readers, agent, tenant, sent text. A terminal shows those for which it has room.
    """
    statuses = {*(status or ()), *(_ACTIVE if active else ())}
    filters = {
        "status": sorted(statuses),
        "model": model,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "query": query,
        "tenant": tenant,
    }
    found, has_more = _find(server, filters, limit, after)
    if as_json:
        typer.echo(json.dumps(found))
        return
    if quiet:
        for run in found:
            typer.echo(run["id"])
        return
    show_rows(_columns_for(found), [_row_of(run) for run in found])
    if not found:
        typer.echo(_none_text(filtered=any(filters.values())), err=True)
    if has_more:
        typer.echo(
            f"More runs exist: --limit shows more than {limit}, and --after {found[-1]['id']} "
            "goes on from here.",
            err=True,
        )


_ACTIVE: Final = tuple(one for one in RunStatus if one.is_active)


def _find(
    server: RemoteServer, filters: dict[str, Any], limit: int, after: str | None
) -> tuple[list[dict[str, Any]], bool]:
    """Return up to ``limit`` runs, page by page, and whether there are more."""
    found: list[dict[str, Any]] = []
    while True:
        size = min(limit - len(found), _PAGE_ITEMS)
        page = server.get("/v1/admin/runs", RunPage, **filters, limit=size, after=after)
        found.extend(page["items"])
        if not page["has_more"] or len(found) >= limit or not page["items"]:
            return found, bool(page["has_more"])
        after = found[-1]["id"]


def _columns_for(runs: Sequence[Mapping[str, Any]]) -> Sequence[Column]:
    """Return the columns; a terminal shows that of the tenant only if there are several."""
    if len({run["tenant"] for run in runs}) < 2:
        return _COLUMNS
    return [replace(one, is_hidden=False) if one.name == "TENANT" else one for one in _COLUMNS]


def _none_text(*, filtered: bool) -> str:
    if filtered:
        return "No run matches. `reattach runs list` without filters shows the newest."
    return (
        "No runs yet. Send a message to an agent, and its run appears here: "
        "POST /v1/agents/{agent_id}/messages."
    )


def _row_of(run: dict[str, Any]) -> tuple[str, ...]:
    rate, first = run["events_per_second"], run["first_event_seconds"]
    return (
        run["id"],
        run["status"],
        run["model"] or "-",
        count_text(run["events"]),
        "-" if rate is None else f"{rate:.0f}/s",
        lag_text(first),
        duration_text(seconds_since(run["created_at"])),
        str(run["attempts"]),
        str(run["readers"]),
        one_line(run["agent_name"] or run["agent_id"]),
        run["tenant"] or "-",
        one_line(run["input_preview"] or "")[:_PREVIEW_CHARS],
    )
