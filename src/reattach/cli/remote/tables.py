"""Rows of a result: aligned columns for people, lines with tabs for programs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import typer

from reattach.cli.printable import one_line
from reattach.domain.clock import SystemClock


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table on a terminal."""

    name: str
    is_whole: bool = False
    """Never shortened, because people copy it."""
    is_number: bool = False
    is_hidden: bool = False
    """Not shown on terminals, only in lines for programs."""
    rank: int = 0
    """Columns of a lower rank are shown first where the terminal has no room for all."""


def show_rows(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows: with a head and aligned on a terminal, else with tabs and nothing left out.

    Control characters in cells are shown as escapes.
    """
    rows = [[one_line(text) for text in row] for row in rows]
    if not sys.stdout.isatty() or not rows:
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = fitting_columns(columns, rows, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for at in shown:
        column = columns[at]
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="fold" if column.is_whole else "ellipsis",
            min_width=_least_width(column, [row[at] for row in rows]),
        )
    for row in rows:
        table.add_row(*(Text(row[at], style=STYLES.get(row[at], "")) for at in shown))
    console.print(table)


_GAP: Final = 2
_SHORT_TEXT_CHARS: Final = 12
"""A longer text may be shortened to this."""


def fitting_columns(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> Sequence[int]:
    """Return the columns for which there is room, in their order; always the first one."""
    shown = [0]
    used = -_GAP
    candidates = [at for at, column in enumerate(columns) if not column.is_hidden]
    for at in sorted(candidates, key=lambda one: columns[one].rank):
        used += _least_width(columns[at], [row[at] for row in rows]) + _GAP
        if used > width:
            break
        shown.append(at)
    return sorted({*shown})


def _least_width(column: Column, texts: Sequence[str]) -> int:
    """Return the width below which a column would hide more than the end of a long text."""
    width = max(len(column.name), *(len(text) for text in texts))
    is_fixed = column.is_whole or column.is_number
    return width if is_fixed else min(width, max(_SHORT_TEXT_CHARS, len(column.name)))


STYLES = {
    "running": "green",
    "created": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "revoked": "yellow",
}
"""Colours of states on a terminal; ``NO_COLOR`` turns them off."""


def moment_of(text: str) -> datetime:
    """Return the moment that an answer names."""
    return datetime.fromisoformat(text)


def seconds_since(text: str, until: str | None = None) -> float:
    """Return the time since a moment of an answer, or from it until another one."""
    end = SystemClock().now() if until is None else moment_of(until)
    return max((end - moment_of(text)).total_seconds(), 0.0)


def duration_text(seconds: float) -> str:
    """Return a duration in one or two units: ``0.4s``, ``12s``, ``4m05s``, ``3h20m``, ``2d04h``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, part_size, part_unit in _UNITS:
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part_size:02}{part_unit}"
    return f"{whole}s"


_UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def count_text(count: int | None) -> str:
    """Return a count with separators; a dash if it is not known."""
    return "-" if count is None else f"{count:,}"


def size_text(size_bytes: float) -> str:
    """Return a size with one digit after the point: ``812 B``, ``3.2 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def lag_text(seconds: float | None) -> str:
    """Return a short time: ``0.4ms``, ``12ms``, ``1.3s``; a dash if it is not known."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.01 else f"{seconds * 1000:.0f}ms"
    return duration_text(seconds)
