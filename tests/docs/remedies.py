"""The remedies on the page about the path to the server.

As a program it writes them: ``python -m tests.docs.remedies``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from reattach.path.remedies import ADVICE, PLACES, Lines, remedies_of

PAGE: Final = Path(__file__).parents[2] / "docs" / "path.md"
_FIRST: Final = "### Events are withheld\n"


def written() -> str:
    """Render the remedies as Markdown."""
    parts = []
    for fault, advice in ADVICE.items():
        rows = [f"| {PLACES[place]} | {_cell(remedy)} |\n" for place, remedy in remedies_of(fault)]
        table = "".join(["| Where | Setting |\n", "|---|---|\n", *rows])
        parts.append(f"### {advice.title}\n\n{advice.step}\n\n{table}")
    return "\n".join(parts)


def on_the_page() -> str:
    """Return the remedies as the page has them."""
    _, first, rest = PAGE.read_text("utf-8").partition(_FIRST)
    return first + rest


def _cell(remedy: Lines) -> str:
    settings = "<br>".join(f"`{line}`".replace("|", "\\|") for line in remedy.lines)
    return " ".join(part for part in (settings, remedy.note) if part)


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.partition(_FIRST)[0] + written(), "utf-8")
