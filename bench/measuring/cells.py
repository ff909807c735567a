"""A Markdown table of experiments between two marks of a page: a row for each client."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

END: Final = "<!-- End of the table. -->\n"

Cells = Mapping[tuple[str, str], str]
"""The texts of a table, by client and column."""


class CellTable:
    """The table that one command writes."""

    def __init__(self, command: str) -> None:
        self.begin = f"<!-- Written by `scripts/bench {command}`. -->\n"

    @staticmethod
    def printed(found: Cells) -> str:
        """Format what was found as a Markdown table."""
        names = list(dict.fromkeys(name for name, _ in found))
        columns = list(dict.fromkeys(column for _, column in found))
        rows = [
            ["Client", *columns],
            ["---"] * (1 + len(columns)),
            *([name, *(found[name, column] for column in columns)] for name in names),
        ]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def cells_of(self, page: str) -> Cells:
        """Return the cells of the table between the marks of a page."""
        lines = page.partition(self.begin)[2].partition(END)[0].strip().splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines]
        if not rows:
            return {}
        (_, *columns), _, *rest = rows
        return {
            (name, column): cell
            for name, *cells in rest
            for column, cell in zip(columns, cells, strict=True)
        }

    def write(self, found: Cells, file: Path, order: Iterable[tuple[str, str]]) -> None:
        """Put the cells into the table of a page, in this order. Other cells of it stay."""
        page = file.read_text("utf-8")
        before, mark, rest = page.partition(self.begin)
        if not mark:
            raise SystemExit(f"bench: {file} has no line {self.begin.strip()!r} for the table.")
        cells = {**self.cells_of(page), **found}
        text = self.printed({place: cells[place] for place in order if place in cells})
        file.write_text(f"{before}{mark}\n{text}\n{END}{rest.partition(END)[2]}", "utf-8")
