"""The examples print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUND_SECONDS = 100


@pytest.mark.promise("P4", "P7", "P8", "P17")
def test_a_call_is_approved_after_a_restart_runs_once_and_is_resumed_by_another_client() -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "approved_later.py")],
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
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
