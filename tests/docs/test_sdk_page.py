"""The page of the SDK's methods says of each what the server does."""

import re

from tests.docs import sdk_surface

STRICT = (
    "tests/clients/test_python_strict.py",
    "tests/http/test_mcp.py",
    "tests/http/test_sdk_strict.py",
    "tests/http/test_tools.py",
)
"""The tests whose SDK validates every answer strictly."""


async def test_every_method_of_the_sdk_is_on_the_page_with_what_the_server_does() -> None:
    table = await sdk_surface.rows()

    assert len(table) > 100
    assert sdk_surface.written() == table, (
        "docs/sdk.md is stale: run `.venv/bin/python -m tests.docs.sdk_surface`"
    )


def test_every_method_that_works_is_called_by_an_sdk_that_validates_strictly() -> None:
    text = "".join((sdk_surface.ROOT / path).read_text("utf-8") for path in STRICT)
    here = {cells[1].strip(" `"): cells[3].strip() for cells in map(_cells, sdk_surface.written())}
    working = [name for name, what in here.items() if what == "yes"]

    assert len(working) > 30
    called = [n for n in working if re.search(rf"\b(sdk|letta)\.{re.escape(n)}\(", text)]
    assert called == working


def _cells(row: str) -> list[str]:
    return row.split("|")
