"""Owners that die, stop and leave again and again while clients use tools."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.faults.chaos import CHAOS, ROLLING, Scenario, under_load
from reattach.testing.programs.cluster import Cluster


@pytest.mark.promise("P1", "P3", "P4", "P7", "P15", "P17", "P19")
@pytest.mark.parametrize("scenario", [CHAOS, ROLLING], ids=lambda one: str(one.name))
async def test_runs_with_tools_complete_and_begin_no_tool_twice(
    cluster: Cluster, journal: Path, scenario: Scenario
) -> None:
    """The long forms are ``scripts/bench chaos`` and ``scripts/bench rolling``."""
    seed = random.SystemRandom().getrandbits(32)
    report = await under_load(
        cluster, scenario, journal, runs=6, seconds=5, seed=seed, rounds=(1, 4)
    )
    assert report.outcome.findings == [], f"{report}\n{cluster.output}"
    assert report.outcome.ends.count("end_turn") == report.outcome.runs > 6
