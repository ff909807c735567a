"""Clients at work on three servers, whatever befalls these or their stores."""

from __future__ import annotations

import pytest

from reattach.testing.faults.experiment import trial
from reattach.testing.faults.inject import Fault, named, together
from reattach.testing.programs.cluster import Cluster


def on_the_way(words: str) -> Fault:
    """What befalls the way to a store, on the ways to both."""
    return together(named(words), named(words.replace("Redis", "PostgreSQL")))


BEFALLING = [
    named("kill -9"),
    named("SIGSTOP"),
    on_the_way("connections to Redis cut"),
    together(on_the_way("connections to Redis slow"), on_the_way("bytes from and to Redis split")),
    on_the_way("network to Redis silent"),
    on_the_way("the owner's connections to Redis half-open"),
    together(named("Redis killed and started, "), named("PostgreSQL stopped")),
    together(named("Redis killed and started empty"), named("PostgreSQL crashed")),
]
"""Both stores at once; ``scripts/bench faults`` has each of them alone."""


@pytest.mark.promise("P1", "P2", "P3", "P4", "P5", "P7", "P9", "P10")
@pytest.mark.parametrize("fault", BEFALLING, ids=lambda fault: str(fault.name))
async def test_clients_lose_nothing_and_double_nothing_and_come_to_an_end(
    cluster: Cluster, fault: Fault
) -> None:
    outcome = await trial(cluster, fault, 1)
    assert outcome.findings == [], cluster.output
    assert outcome.events_read > 0
