"""``reattach runs tail``: the events of runs, one a line, as they come."""

import shutil
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from reattach.cli.following import Reporter, follow, show_json
from reattach.cli.printable import counted, fail, one_line
from reattach.cli.remote.answers import Frames
from reattach.cli.remote.completion import run_ids
from reattach.cli.remote.server import RemoteServer, with_server_flags

if TYPE_CHECKING:
    from reattach.client import Event

_SEQ_CHARS: Final = 6
_TYPE_CHARS: Final = 16


@with_server_flags
def tail_runs(
    *,
    run_id: Annotated[list[str], typer.Argument(help="Ids of runs.", autocompletion=run_ids)],
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Begin with this many of the last events.")
    ] = 10,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin after this seq instead; 0 shows all events.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON, for programs.")
    ] = False,
    server: RemoteServer,
) -> None:
    """Show the events of runs, one a line, until the runs end, through every broken connection.

    Columns: run if there are several, seq, type, text. Ctrl-C detaches; the runs continue on the
    server. Status 1 if a run failed or was cancelled.
    """
    ids = list(dict.fromkeys(run_id))
    cursors = {one: _cursor(server, one, lines, after) for one in ids}
    show = show_json if as_json else partial(_show, names_run=len(ids) > 1)
    again = ["runs", "tail", *ids, "--url", server.url]
    if len(ids) == 1:
        [(only, cursor)] = cursors.items()
        reporter = Reporter(server.url, cursor, again)
        follow(
            reporter,
            server.api_key,
            lambda client: client.follow(run_id=only, starting_after=cursor),
            show,
        )
    else:
        reporter = Reporter(server.url, 0, again, has_cursor=False)
        follow(reporter, server.api_key, lambda client: client.many(cursors), show)


def _cursor(server: RemoteServer, run_id: str, lines: int, after: int | None) -> int:
    """Return ``after``, or the seq after which the last ``lines`` events of a run so far begin.

    If the log begins later, because the store lost events, it is the seq before its first event.
    Exits if the run has no event ``after`` yet.
    """
    events = server.get(f"/v1/runs/{quote(run_id, safe='')}/frames", Frames, limit=1)
    first, last = int(events["first_seq"]), int(events["last_seq"])
    if after is not None and after > last:
        fail(
            f"The run {run_id} has no event {after}: its last one is {last}. Name an earlier one "
            "with --after, or leave it out to begin with the last events."
        )
    wanted = max(last - lines, 0) if after is None else after
    if wanted < first - 1 and (after is not None or lines > last - first + 1):
        typer.echo(
            f"reattach: The log of {run_id} begins with event {first}: those before it are lost.",
            err=True,
        )
    return max(wanted, first - 1)


def _show(event: "Event", *, names_run: bool) -> None:
    seq = event.get("seq_id")
    kind = str(event["message_type"]).removesuffix("_message")
    text = one_line(text_of(event))
    if not sys.stdout.isatty():
        parts = [str(event.get("run_id", ""))] if names_run else []
        typer.echo("\t".join((*parts, str(seq or ""), kind, text)))
        return
    prefix = f"{event.get('run_id', '')}  " if names_run else ""
    line = f"{prefix}{seq or '':>{_SEQ_CHARS}}  {kind:<{_TYPE_CHARS}}  {text}"
    typer.echo(line[: shutil.get_terminal_size().columns])


def text_of(event: "Event") -> str:
    """Return what an event says, for a person."""
    match event["message_type"]:
        case "assistant_message":
            return str(event.get("content") or "")
        case "reasoning_message":
            return str(event.get("reasoning") or "")
        case "tool_call_message" | "approval_request_message":
            return _call_text(event.get("tool_call") or {})
        case "tool_return_message":
            return f"{event.get('name') or ''} {event.get('status')}: {event.get('tool_return')}"
        case "stop_reason":
            return str(event.get("stop_reason"))
        case "usage_statistics":
            return (
                f"{event.get('prompt_tokens')} prompt, {event.get('completion_tokens')} completion "
                f"tokens, {counted(event.get('step_count') or 0, 'step')}"
            )
        case "error_message":
            return f"{event.get('error_type')}: {event.get('message')}"
        case "run_error":
            return str(event.get("detail"))
        case _:
            return ""


def _call_text(call: Mapping[str, Any]) -> str:
    """Return a piece of a tool call: its name, a part of its arguments, or both."""
    return f"{call.get('name') or ''}{call.get('arguments') or ''}"
