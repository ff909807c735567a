"""The choices of the person at ``reattach top``: keys, order, filter and selection."""

from __future__ import annotations

from typing import Any

import pytest

from reattach.cli.top.keys import keys_of
from reattach.cli.top.samples import place_of
from reattach.cli.top.view import ORDERS, View


def run(number: int, **members: Any) -> dict[str, Any]:
    defaults = {
        "status": "running",
        "model": "scripted/echo",
        "agent_id": "agent-1",
        "agent_name": "guide",
        "tenant": "org-1",
        "owner": "owner-1",
        "rate": None,
        "events": None,
        "readers": 0,
        "attempts": 1,
        "first_event_seconds": None,
        "created_at": f"2026-11-29T22:00:0{number}Z",
    }
    return {"id": f"run-{number}", **defaults, **members}


def ids(view: View, runs: list[dict[str, Any]]) -> list[str]:
    return [str(one["id"]) for one in view.arrange(runs)]


def press(view: View, keys: str) -> None:
    for key in keys_of(keys):
        assert view.press(key) is None


RUNS = [
    run(1, rate=5.0, events=900, readers=3),
    run(2, rate=None, events=None, model="local/tiny"),
    run(3, rate=80.0, events=100, readers=1, agent_name="Ferry"),
]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("rate", ["run-3", "run-1", "run-2"]),
        ("events", ["run-1", "run-3", "run-2"]),
        ("age", ["run-1", "run-2", "run-3"]),
        ("readers", ["run-1", "run-3", "run-2"]),
        ("model", ["run-2", "run-1", "run-3"]),
    ],
)
def test_each_order_begins_with_the_runs_that_people_look_for(
    order: str, expected: list[str]
) -> None:
    view = View()
    while view.order != order:
        press(view, "s")
    assert ids(view, RUNS) == expected


def test_the_key_of_the_order_goes_round_and_back_and_r_turns_it() -> None:
    view = View()
    press(view, "s" * len(ORDERS))
    assert view.order == "rate"
    press(view, "S")
    assert view.order == list(ORDERS)[-1]
    press(view, "sr")
    assert ids(view, RUNS)[-1] == "run-3"


def test_a_filter_finds_names_models_and_ids_and_escape_clears_it() -> None:
    view = View()
    press(view, "/ferryx\x7f\r")
    assert ids(view, RUNS) == ["run-3"]
    press(view, "\x1b")
    assert len(ids(view, RUNS)) == 3
    press(view, "/TINY")
    assert ids(view, RUNS) == ["run-2"]
    press(view, "q\x1b")  # A q of a filter does not quit.
    assert len(ids(view, RUNS)) == 3


def test_arrows_select_a_run_which_stays_selected_when_the_order_changes() -> None:
    view = View(page_rows=2)
    view.arrange(RUNS)
    press(view, "\x1b[B\x1b[B")
    assert view.selected == "run-1"
    press(view, "s")
    view.arrange(RUNS)
    assert view.selected == "run-1"
    press(view, "\x1b[6~")
    assert view.selected == "run-2"
    press(view, "\x1b[H")
    assert view.selected == "run-1"
    press(view, "\x1bOA\x1b[F")
    assert view.selected == "run-2"


def test_a_cancel_needs_a_selected_run_and_a_yes() -> None:
    view = View()
    view.arrange(RUNS)
    press(view, "x")
    assert "Select a run" in view.note
    press(view, "\x1b[Bx")
    assert view.press("n") is None
    assert view.press("y") is None
    press(view, "x")
    assert view.press("y") == "cancel"


def test_q_quits_and_unknown_sequences_of_a_terminal_are_ignored() -> None:
    view = View()
    press(view, "\x1b[1;5Cz\x1b[200~")
    assert view == View()
    assert view.press("q") == "quit"


def test_processes_keep_their_places_whichever_of_them_answers() -> None:
    processes: list[dict[str, Any]] = [
        {"id": "c", "host": "b", "worker": None},
        {"id": "b", "host": "a", "worker": 1},
        {"id": "a", "host": "a", "worker": 0},
        {"id": "d", "host": None, "worker": None},
    ]
    for answer in (processes, processes[::-1]):
        assert [one["id"] for one in sorted(answer, key=place_of)] == ["d", "a", "b", "c"]
