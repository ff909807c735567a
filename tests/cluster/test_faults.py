"""Clients at work on three servers while faults are injected into these and their stores."""

from __future__ import annotations

import pytest

from bench.faults.experiment import run_experiment
from bench.faults.inject import Fault, combined, fault_named
from reattach.testing.programs.cluster import Cluster


def to_both_stores(words: str) -> Fault:
    """The network fault that ``words`` name for Redis, injected for PostgreSQL too."""
    return combined(fault_named(words), fault_named(words.replace("Redis", "PostgreSQL")))


INJECTED = [
    fault_named("kill -9"),
    fault_named("SIGSTOP"),
    to_both_stores("connections to Redis cut"),
    combined(
        to_both_stores("connections to Redis slow"), to_both_stores("bytes from and to Redis split")
    ),
    to_both_stores("network to Redis silent"),
    to_both_stores("the owner's connections to Redis half-open"),
    combined(fault_named("Redis killed and started, "), fault_named("PostgreSQL stopped")),
    combined(fault_named("Redis killed and started empty"), fault_named("PostgreSQL crashed")),
]
"""Faults of both stores at once; ``scripts/bench faults`` injects each alone."""


@pytest.mark.promise("P1", "P2", "P3", "P4", "P5", "P7", "P9", "P10")
@pytest.mark.parametrize("fault", INJECTED, ids=lambda fault: str(fault.name))
async def test_clients_lose_and_double_no_event_and_every_run_ends(
    cluster: Cluster, fault: Fault
) -> None:
    outcome = await run_experiment(cluster, fault, 1)
    assert outcome.findings == [], cluster.output
    assert outcome.events_read > 0
