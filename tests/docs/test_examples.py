"""The examples print what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.forking import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUND_SECONDS = 100


@pytest.mark.promise("P4", "P7", "P8", "P17")
def test_a_call_is_approved_after_a_restart_runs_once_and_is_resumed_by_another_client() -> None:
    ran = run_program(EXAMPLES / "approved_later.py", cwd=Path.cwd(), timeout_seconds=BOUND_SECONDS)
    assert ran.returncode == 0, ran.stdout
    booked = "Booked 2 seats to Skye, which is an island."
    assert ran.stdout.splitlines() == [
        'asked: may ferries__book run with {"to": "Skye", "seats": 2}',
        "the run ended: requires_approval",
        "the server is killed; bookings so far: False",
        f"approved, and the tool returned: {booked}",
        f"resumed: ferries__book success: {booked}",
        "the run ended: end_turn",
        "bookings: ['Skye 2']",
    ]
