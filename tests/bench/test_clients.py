"""The table of what a user of each client sees is made from experiments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.clients.clients import ENDED, UNEXPLAINED, View, clients
from bench.clients.faults import FAULTS
from bench.clients.table import TABLE, described, observed
from bench.measuring.cells import END
from tests.support.javascript_client import require_client

PAGE = Path(__file__).parents[2] / "docs" / "survival.md"
CUT, EXPIRED = (next(one for one in FAULTS if one.name == name) for name in ("cut", "log expired"))


@pytest.mark.timeout(100)
def test_a_cut_shows_all_once_and_an_expired_log_stops_with_its_status() -> None:
    require_client()
    with clients() as makers:
        assert observed(makers["`fetch`, in Node"], CUT) == "all, once"
        assert observed(makers["Python client"], EXPIRED) == "stops: ExpiredError (410)"


@pytest.mark.parametrize(
    ("text", "end", "seen"),
    [
        ("a b c ", ENDED, "all, once"),
        ("a b c ", "Gone (410)", "all, once; then stops: Gone (410)"),
        ("a b ", "Gone (410)", "stops: Gone (410)"),
        ("a ", UNEXPLAINED, "stops without a reason"),
        ("", None, "hangs"),
        ("a b ", ENDED, "**1 words lost, 0 doubled**"),
        ("a a b c ", ENDED, "**0 words lost, 1 doubled**"),
        ("b c c ", "Gone (410)", "**1 words lost, 1 doubled**; stops: Gone (410)"),
    ],
)
def test_words_that_are_lost_or_doubled_are_counted(text: str, end: str | None, seen: str) -> None:
    assert described(View(text, end), "a b c ") == seen


def test_a_table_replaces_the_same_cells_of_a_page_and_keeps_the_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{TABLE.begin}{END}after\n", "utf-8")
    order = [("one", "cut"), ("two", "cut")]
    TABLE.write({("two", "cut"): "all, once"}, page, order)
    TABLE.write({("one", "cut"): "hangs"}, page, order)
    TABLE.write({("one", "cut"): "all, once"}, page, order)
    new = TABLE.printed({("one", "cut"): "all, once", ("two", "cut"): "all, once"})
    assert page.read_text("utf-8") == f"before\n\n{TABLE.begin}\n{new}\n{END}after\n"


def test_the_table_of_the_docs_has_every_client_and_fault_and_nothing_is_lost_or_doubled() -> None:
    cells = TABLE.cells_of(PAGE.read_text("utf-8"))
    with clients() as makers:
        assert list(cells) == [(name, fault.name) for name in makers for fault in FAULTS]
    assert not [cell for cell in cells.values() if re.search(r"lost|doubled|hangs", cell)]
