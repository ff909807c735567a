"""``reattach runs show``: everything that a server knows of one run."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from reattach.cli.options import AsJson
from reattach.cli.printable import one_line
from reattach.cli.remote.answers import RunDetails
from reattach.cli.remote.completion import run_ids
from reattach.cli.remote.server import RemoteServer, with_server_flags
from reattach.cli.remote.tables import (
    Column,
    count_text,
    duration_text,
    lag_text,
    moment_of,
    seconds_since,
    show_rows,
    size_text,
)

Json = dict[str, Any]
_LABEL_CHARS: Final = 14


@with_server_flags
def show_run(
    *,
    run_id: Annotated[str, typer.Argument(help="Id of the run.", autocompletion=run_ids)],
    as_json: AsJson = False,
    server: RemoteServer,
) -> None:
    """Show a run with its attempts, steps, tool calls, readers, and readers that were cut off."""
    run = server.get(f"/v1/admin/runs/{quote(run_id, safe='')}", RunDetails)
    if as_json:
        typer.echo(json.dumps(run))
        return
    for label, text in _facts_of(run):
        typer.echo(f"{label:<{_LABEL_CHARS}}{one_line(text)}")
    began = run["created_at"]
    _section("attempts", _ATTEMPTS, [_attempt_row(one) for one in run["attempt_list"]])
    _section("steps", _STEPS, [_step_row(one) for one in run["steps"]])
    _section("tool calls", _CALLS, [_call_row(one, began) for one in run["tool_calls"]])
    _section(
        "readers",
        _READERS,
        [_reader_row(one) for one in run["readers_list"]],
        empty="Nobody reads this run at present.",
    )
    _section("cut off", _CUT_OFFS, [_cut_row(one) for one in run["cut_offs"]])


def _section(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], *, empty: str = ""
) -> None:
    """Print a table with its title; nothing if it has no rows and no text for that."""
    if not rows and not empty:
        return
    typer.echo(f"\n{title.upper()}")
    if rows:
        show_rows(columns, rows)
    else:
        typer.echo(empty)


def _facts_of(run: Json) -> Iterator[tuple[str, str]]:
    """Yield the lines at the top: a label and its text."""
    yield "run", run["id"]
    stop = f", {run['stop_reason']}" if run["stop_reason"] else ""
    yield "status", f"{run['status']}{stop}"
    if run["error"]:
        yield "error", f"{run['error']['error_type']}: {run['error']['message']}"
        if run["error"]["detail"]:
            yield "", run["error"]["detail"]
    if run["cancel_requested_at"]:
        yield "cancel", f"requested at {_moment(run['cancel_requested_at'])}"
    if run["tenant"]:
        yield "tenant", run["tenant"]
    name = f" ({run['agent_name']})" if run["agent_name"] else ""
    yield "agent", f"{run['agent_id']}{name}"
    yield "conversation", run["conversation_id"] or "the agent's default conversation"
    yield "model", run["model"] or "-"
    yield "sent", f"{'in the background' if run['background'] else 'by a client that waits'}"
    yield "began", f"{_moment(run['created_at'])}, {_ago(run['created_at'])}"
    if run["completed_at"]:
        took = duration_text(seconds_since(run["created_at"], run["completed_at"]))
        yield "ended", f"{_moment(run['completed_at'])}, after {took}"
    if run["first_event_seconds"] is not None:
        yield "first event", f"after {lag_text(run['first_event_seconds'])}"
    yield "events", _events_text(run)
    owner = run["owner"] or "none"
    worker = f", worker {run['worker']}" if run["worker"] is not None else ""
    yield "owner", f"{owner}{worker}"
    usage = run["usage"]
    if usage:
        prompt = count_text(usage.get("prompt_tokens"))
        completion = count_text(usage.get("completion_tokens"))
        yield "usage", f"{prompt} prompt and {completion} completion tokens"
    if run["input_preview"]:
        yield "input", run["input_preview"]


def _events_text(run: Json) -> str:
    parts = [count_text(run["events"])]
    if run["last_seq"]:
        parts.append(f"seq {run['first_seq']}-{run['last_seq']}")
    if run["events_per_second"] is not None:
        parts.append(f"{run['events_per_second']:.1f}/s")
    if run["bytes"] is not None:
        parts.append(size_text(run["bytes"]))
    log = f"log {run['log']}"
    if run["log_deleted_at"]:
        log += f" {_moment(run['log_deleted_at'])}"
    return ", ".join((*parts, log))


_ATTEMPTS: Final = (
    Column("NO", is_number=True),
    Column("WAY"),
    Column("OWNER", is_whole=True),
    Column("TOKEN", is_number=True),
    Column("BEGAN"),
    Column("ENDED"),
    Column("AFTER", is_number=True),
    Column("FIRST", is_number=True),
    Column("BECAUSE OF"),
)


def _attempt_row(attempt: Json) -> tuple[str, ...]:
    return (
        str(attempt["number"]),
        attempt["way"] or "begin",
        attempt["owner"] or "-",
        _text(attempt["token"]),
        _clock(attempt["began_at"]),
        _clock(attempt["ended_at"]),
        _text(attempt["after_seq"]),
        _text(attempt["first_seq"]),
        one_line(_text(attempt["interruption"])),
    )


_STEPS: Final = (
    Column("STEP", is_whole=True),
    Column("MODEL"),
    Column("BEGAN"),
    Column("TOOK", is_number=True),
    Column("PROMPT", is_number=True),
    Column("COMPLETION", is_number=True),
)


def _step_row(step: Json) -> tuple[str, ...]:
    usage = step["usage"] or {}
    return (
        step["id"],
        step["model"] or "-",
        _clock(step["began_at"]),
        _took(step["began_at"], step["ended_at"]),
        count_text(usage.get("prompt_tokens")),
        count_text(usage.get("completion_tokens")),
    )


_CALLS: Final = (
    Column("TOOL"),
    Column("STATUS"),
    Column("SEQ"),
    Column("AFTER", is_number=True),
    Column("TOOK", is_number=True),
    Column("CALL", rank=1),
)


def _call_row(call: Json, began: str) -> tuple[str, ...]:
    after = "-" if not call["began_at"] else duration_text(seconds_since(began, call["began_at"]))
    return (
        one_line(call["name"]),
        call["status"] or "-",
        "-" if call["began_seq"] is None else f"{call['began_seq']}-{call['ended_seq'] or ''}",
        after,
        _took(call["began_at"], call["ended_at"]),
        one_line(call["id"]),
    )


_READERS: Final = (
    Column("CLIENT"),
    Column("TRANSPORT"),
    Column("CURSOR", is_number=True),
    Column("LAG", is_number=True),
    Column("FOR", is_number=True),
    Column("PROCESS", rank=1),
)


def _reader_row(reader: Json) -> tuple[str, ...]:
    return (
        one_line(reader["client"] or "unknown"),
        reader["transport"],
        count_text(reader["cursor"]),
        count_text(reader["lag_events"]),
        duration_text(seconds_since(reader["since"])),
        _text(reader["process"]),
    )


_CUT_OFFS: Final = (
    Column("AT"),
    Column("REASON"),
    Column("CLIENT"),
    Column("TRANSPORT"),
    Column("CURSOR", is_number=True),
    Column("PROCESS", rank=1),
)


def _cut_row(cut: Json) -> tuple[str, ...]:
    return (
        _clock(cut["at"]),
        cut["reason"],
        one_line(cut["client"] or "unknown"),
        cut["transport"],
        count_text(cut["cursor"]),
        _text(cut["process"]),
    )


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _moment(text: str) -> str:
    return f"{moment_of(text):%Y-%m-%d %H:%M:%S} UTC"


def _clock(text: str | None) -> str:
    return "-" if text is None else f"{moment_of(text):%H:%M:%S}"


def _ago(text: str) -> str:
    return f"{duration_text(seconds_since(text))} ago"


def _took(began: str | None, ended: str | None) -> str:
    return "-" if began is None or ended is None else lag_text(seconds_since(began, ended))
