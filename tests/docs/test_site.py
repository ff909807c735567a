"""The site of the documentation has every page. ``scripts/check`` builds it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/reference.md"}


def pages_of(nav: list[dict[str, Any]] | list[str]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from pages_of(target)
            else:
                yield target


def test_every_page_has_a_place_in_the_navigation() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench/results.md"]

    assert sorted(pages_of(project["nav"])) == sorted(
        {str(page.relative_to(ROOT)) for page in pages} | GENERATED
    )
