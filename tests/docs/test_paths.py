"""The files that a page names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "PROTOCOL.md",
    "docs/callbacks.md",
    "docs/read-the-code.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs/decisions").glob("*.md")),
)
NAMED = re.compile(r"`((?:[a-z_0-9.-]+/)+(?:[a-z_0-9]+\.py|(?=`))|[a-z_]+\.py)`")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    missing = [
        name
        for name in NAMED.findall((ROOT / page).read_text("utf-8"))
        if not any((place / name).exists() for place in (ROOT, ROOT / "src", ROOT / "src/reattach"))
    ]

    assert missing == []


def test_the_table_of_packages_names_modules_that_exist() -> None:
    """A module is in the folder of its row, or in one below it."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z_/]+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 15
    missing = [
        f"{package}: {module}"
        for package, modules in rows
        for module in re.findall(r"`([a-z_]+)`", modules)
        if not any(
            (ROOT / "src/reattach" / package / name).exists() for name in (module, f"{module}.py")
        )
    ]

    assert missing == []
