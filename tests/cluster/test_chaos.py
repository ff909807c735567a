"""Owners that die, stop and leave again and again while clients use tools."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.faults.chaos import CHAOS, ROLLING, Scenario, under_load
from bench.faults.load import ROUNDS
from reattach.testing.programs.cluster import Cluster


@pytest.mark.timeout(300)
@pytest.mark.promise("P1", "P3", "P4", "P7", "P15", "P17", "P19")
@pytest.mark.parametrize("scenario", [CHAOS, ROLLING], ids=lambda one: str(one.name))
async def test_runs_with_tools_complete_and_begin_no_tool_twice(
    cluster: Cluster,
    journal: Path,
    scenario: Scenario,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--chaos`` runs the long form."""
    is_long = pytestconfig.getoption("--chaos")
    at_once = 50 if is_long else 6
    report = await under_load(
        cluster,
        scenario,
        journal,
        runs=at_once,
        seconds=60 if is_long else 5,
        seed=random.SystemRandom().getrandbits(32),
        rounds=ROUNDS if is_long else (1, 4),
    )
    if is_long:
        with capsys.disabled():
            print(f"\n{scenario.name}, {report}")  # noqa: T201  the figures of the long form
    assert report.outcome.findings == [], f"{report}\n{cluster.output}"
    assert report.outcome.ends.count("end_turn") == report.outcome.runs >= at_once
