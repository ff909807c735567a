"""The page of the SDK's methods agrees with the server."""

import re

from tests.docs import sdk_surface

STRICT = (
    "tests/clients/test_python_strict.py",
    "tests/http/test_mcp.py",
    "tests/http/test_sdk_strict.py",
    "tests/http/test_tools.py",
)
"""The tests whose SDK validates every response strictly."""


async def test_every_method_of_the_sdk_is_on_the_page_with_its_support() -> None:
    table = await sdk_surface.rows()

    assert len(table) > 100
    assert sdk_surface.rows_of_the_page() == table, (
        "docs/sdk.md is stale: run `.venv/bin/python -m tests.docs.sdk_surface`"
    )


def test_every_supported_method_is_called_by_an_sdk_that_validates_strictly() -> None:
    text = "".join((sdk_surface.ROOT / path).read_text("utf-8") for path in STRICT)
    here = {
        cells[1].strip(" `"): cells[3].strip()
        for cells in map(_cells, sdk_surface.rows_of_the_page())
    }
    working = [name for name, what in here.items() if what == "yes"]

    assert len(working) > 30
    called = [n for n in working if re.search(rf"\b(sdk|letta)\.{re.escape(n)}\(", text)]
    assert called == working


def _cells(row: str) -> list[str]:
    return row.split("|")
