"""The picture of a sample on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reattach.cli.printable import one_line
from reattach.cli.remote.tables import (
    STYLES,
    Column,
    count_text,
    duration_text,
    fitting_columns,
    lag_text,
    seconds_since,
    size_text,
)
from reattach.cli.top.samples import Sample
from reattach.cli.top.view import View
from reattach.redact import without_secrets

Json = Mapping[str, Any]

_MOST_PROCESSES: Final = 0.3
"""The part of the lines that processes may take."""

_FIXED_LINES: Final = 5
"""The head, two headings, the line between the tables, and the foot."""

_HELP: Final = "q quit  s sort  r reverse  / filter  ↑↓ select  x cancel run  space pause"

_PROCESS_COLUMNS: Final = (
    ("PROCESS", 0),
    ("HOST", 110),
    ("PID", 90),
    ("VERSION", 130),
    ("UP", 0),
    ("RUNS", 0),
    ("READERS", 0),
    ("CONN", 80),
    ("MEMORY", 100),
    ("LAG", 0),
    ("LEASE", 120),
    ("RECORDS P99", 140),
    ("LOG P99", 140),
)
"""The names of the columns, and the width of a terminal from which on each is shown."""

_RUN_COLUMNS: Final = (
    ("RUN", 0),
    ("STATUS", 0),
    ("RATE", 0),
    ("EVENTS", 0),
    ("AGE", 0),
    ("FIRST", 110),
    ("READERS", 90),
    ("ATT", 100),
    ("MODEL", 120),
    ("OWNER", 150),
    ("AGENT", 170),
    ("TENANT", 230),
)
_MARK: Final = "▼"
"""Beside the name of the column by which runs are sorted; it needs as much room as its reverse."""
_TEXTS: Final = frozenset(
    {"PROCESS", "HOST", "VERSION", "RUN", "STATUS", "MODEL", "OWNER", "AGENT", "TENANT"}
)
"""Columns that are aligned to the left."""

_ORDER_COLUMNS: Final = {"attempts": "ATT"}
"""Columns whose names are not those of their order."""


def picture(
    sample: Sample, view: View, *, url: str, trouble: str | None, columns: int, lines: int
) -> RenderableType:
    """Draw a sample within the size of the terminal; ``trouble`` says why it is an old one."""
    processes = sample.processes[: max(int(lines * _MOST_PROCESSES), 1)]
    rows = max(lines - _FIXED_LINES - len(processes), 1)
    runs = view.arrange(sample.runs)
    view.page_rows = rows
    first = _first_row(runs, view.selected, rows)
    shown = runs[first : first + rows]
    return Group(
        _head(sample, view, url, trouble),
        _table(_PROCESS_COLUMNS, [process_row(one) for one in processes], columns),
        Text(""),
        _runs_table(shown, view, columns, _run_columns(sample))
        if shown
        else Text(_empty_text(sample, view), style="dim"),
        _foot(view, first, len(shown), len(runs), columns),
    )


def _first_row(runs: Sequence[Json], selected: str | None, rows: int) -> int:
    """Return the row at which the table begins, so that the selected run is in sight."""
    at = next((at for at, run in enumerate(runs) if run["id"] == selected), 0)
    return min(max(at - rows // 2, 0), max(len(runs) - rows, 0))


def _head(sample: Sample, view: View, url: str, trouble: str | None) -> Text:
    head = Text.assemble(
        ("reattach top", "bold"),
        f"  {'  '.join(sample.summary)}  {sample.at:%H:%M:%S} UTC  ",
        (without_secrets(url), "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
    if trouble is not None:
        head = Text(
            f"{one_line(trouble)} Shown: {sample.at:%H:%M:%S} UTC.", style="red", no_wrap=True
        )
    elif view.is_paused:
        head.append("  PAUSED", style="yellow bold")
    return head


def _foot(view: View, first: int, count: int, total: int, columns: int) -> Text:
    if view.asks:
        return Text(f"Cancel {one_line(view.selected)}? y/n", style="yellow bold")
    if view.is_typing:
        return Text(f"Filter: {view.filter}▌  (Enter keeps it, Esc clears it)", no_wrap=True)
    way = "▼" if view.is_downwards else "▲"
    parts = [f"{first + 1}-{first + count} of {total}" if count else "", f"by {view.order} {way}"]
    if view.filter:
        parts.append(f"filter {view.filter!r}")
    parts.append(one_line(view.note) if view.note else _HELP)
    foot = Text("  ".join(part for part in parts if part), style="dim", no_wrap=True)
    foot.truncate(columns, overflow="ellipsis")
    return foot


def _empty_text(sample: Sample, view: View) -> str:
    if sample.runs and view.filter:
        return f"No open run matches {view.filter!r}. Esc shows all."
    return "No run is open. Runs appear here while they are being answered."


def _table(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[str]], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    candidates = [
        Column(
            name,
            is_whole=name == "RUN",
            is_number=name not in _TEXTS,
            is_hidden=least > width,
            rank=least,
        )
        for name, least in columns
    ]
    shown = fitting_columns(candidates, rows, width - len(_MARK))
    for at in shown:
        name = columns[at][0]
        table.add_column(
            name,
            justify="left" if name in _TEXTS else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=_RUN_ID_CHARS if name == "RUN" else None,
        )
    for row in rows:
        table.add_row(*(Text(one_line(row[at]), style=STYLES.get(row[at], "")) for at in shown))
    return table


_RUN_ID_CHARS: Final = 40
_OWNER_CHARS: Final = 8
"""Enough of the id of a process to tell it from the others."""


def _run_columns(sample: Sample) -> Sequence[tuple[str, int]]:
    """Return the columns of runs; that of the tenant comes sooner if there are several."""
    if len({run["tenant"] for run in sample.runs}) < 2:
        return _RUN_COLUMNS
    return [(name, 130 if name == "TENANT" else least) for name, least in _RUN_COLUMNS]


def _runs_table(
    runs: Sequence[Json], view: View, width: int, columns: Sequence[tuple[str, int]]
) -> Table:
    sorted_by = _ORDER_COLUMNS.get(view.order, view.order.upper())
    mark = _MARK if view.is_downwards else "▲"
    table = _table(columns, [run_row(run) for run in runs], width)
    for column in table.columns:
        if column.header == sorted_by:
            column.header = f"{sorted_by}{mark}"
            column.header_style = "bold underline"
    for row, run in zip(table.rows, runs, strict=True):
        if run["id"] == view.selected:
            row.style = "reverse"
    return table


def process_row(process: Json) -> tuple[str, ...]:
    worker = "" if process["worker"] is None else f" w{process['worker']}"
    state = " draining" if process["draining"] else ""
    lease = process["lease"]
    return (
        f"{process['id'][:_OWNER_CHARS]}{worker}{state}",
        process["host"] or "-",
        str(process["pid"] or "-"),
        process["version"] or "-",
        duration_text(seconds_since(process["started_at"])),
        count_text(process["open_runs"]),
        count_text(process["readers"]),
        count_text(process["connections"]),
        "-" if process["memory_bytes"] is None else size_text(process["memory_bytes"]),
        lag_text(process["event_loop_lag_seconds"]),
        "-" if lease is None else _lease_text(lease),
        _slowest(process, "records"),
        _slowest(process, "log"),
    )


def _lease_text(lease: Json) -> str:
    """Return the time that is left of a lease, and its length."""
    margin = lease["margin_seconds"]
    return f"{'-' if margin is None else f'{margin:.1f}'}/{lease['seconds']:g}s"


def _slowest(process: Json, store: str) -> str:
    """Return the longest 99th percentile of the operations of a store."""
    times = [
        operation["p99_seconds"]
        for one in process["stores"] or ()
        if one["store"] == store
        for operation in one["operations"]
        if operation["p99_seconds"] is not None
    ]
    return lag_text(max(times, default=None))


def run_row(run: Json) -> tuple[str, ...]:
    first = run["first_event_seconds"]
    status = "cancelling" if run["cancel_requested_at"] else run["status"]
    return (
        run["id"],
        status,
        "-" if run["rate"] is None else f"{run['rate']:,.0f}/s",
        count_text(run["events"]),
        duration_text(seconds_since(run["created_at"])),
        lag_text(first),
        count_text(run["readers"]),
        count_text(run["attempts"]),
        run["model"] or "-",
        (run["owner"] or "-")[:_OWNER_CHARS],
        one_line(run["agent_name"] or run["agent_id"]),
        run["tenant"] or "-",
    )
