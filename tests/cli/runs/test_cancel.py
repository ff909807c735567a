"""``reattach runs cancel``: several runs at once, with the status of each."""

from __future__ import annotations

import io
import json
import sys
from unittest.mock import patch

from reattach.testing.programs.server import ServerProcess
from tests.support.commands import reattach_here
from tests.support.runs_of_a_server import Runs

UNKNOWN = "run-00000000-0000-4000-8000-000000000000"


def test_several_runs_are_cancelled_and_an_ended_one_keeps_its_status(
    server: ServerProcess, runs: Runs
) -> None:
    first, second, ended = runs.start("[hang=1]"), runs.start("[hang=1]"), runs.finish("word")
    done = reattach_here("runs", "cancel", first, second, ended, "--url", server.url)
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        f"{first}\tcancelled",
        f"{second}\tcancelled",
        f"{ended}\tcompleted",
    ]
    assert runs.status(first) == "cancelled"


def test_runs_that_do_not_exist_are_named_and_the_others_are_cancelled(
    server: ServerProcess, runs: Runs
) -> None:
    run_id = runs.start("[hang=1]")
    done = reattach_here(
        "runs", "cancel", "nonsense", UNKNOWN, run_id, "--json", "--url", server.url
    )
    assert done.status == 1
    assert json.loads(done.out) == {
        "statuses": {run_id: "cancelled"},
        "not_found": ["nonsense", UNKNOWN],
    }
    assert len(done.err.splitlines()) == 2


def test_ids_are_read_from_standard_input(server: ServerProcess, runs: Runs) -> None:
    first, second = runs.start("[hang=1]"), runs.start("[hang=1]")
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{first}\n{second}\n".encode()))):
        done = reattach_here("runs", "cancel", "-", "--url", server.url)
    assert done.out.split() == [first, "cancelled", second, "cancelled"]


def test_an_empty_standard_input_is_a_mistake(server: ServerProcess) -> None:
    with patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""))):
        done = reattach_here("runs", "cancel", "-", "--url", server.url)
    assert done.status == 2
    assert "no ids of runs" in done.err
