"""Leases of processes whose event loop is busy or that were paused."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from reattach.domain.clock import SystemClock
from reattach.domain.limits import BEATS_PER_LEASE
from reattach.records.records import Records
from reattach.runs.ownership.lease import Ownership
from reattach.runs.upkeep import heartbeat
from tests.cluster.nodes import Nodes
from tests.support.beats import beat, renew_lease
from tests.support.clocks import LeapClock
from tests.support.stores import eventually

LEASE_SECONDS = 1.0


async def is_buried(owner: str, url: str, seconds: float) -> bool:
    """Return whether another process declares the owner dead within this time."""
    records = await Records.open(url, clock=SystemClock())
    buried: list[str] = []
    until = time.monotonic() + seconds
    while owner not in buried and time.monotonic() < until:
        buried += await records.owners.bury()
        await asyncio.sleep(0.05)
    await records.aclose()
    return owner in buried


def is_buried_while_busy(owner: str, nodes: Nodes, seconds: float) -> bool:
    """Block the event loop, as a large body does."""
    with ThreadPoolExecutor(1) as threads:
        burying = threads.submit(asyncio.run, is_buried(owner, nodes.database_url, seconds))
        while not burying.done():
            sum(range(1000))
        return burying.result()


@pytest.mark.promise("P7")
async def test_a_busy_event_loop_does_not_cost_the_process_its_lease(nodes: Nodes) -> None:
    """B3: the heartbeat does not depend on the event loop."""
    node = await nodes.node(lease_seconds=LEASE_SECONDS)
    owner = node.runs.ownership.owner
    assert not is_buried_while_busy(owner, nodes, 2 * LEASE_SECONDS)
    assert await nodes.stores.records.owners.is_alive(owner)
    assert node.runs.ownership.owner == owner


@pytest.mark.promise("P7")
async def test_an_event_loop_that_hangs_too_long_loses_the_lease_and_notices_it(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: a process whose event loop hangs for ever does not keep its runs for ever."""
    monkeypatch.setattr(heartbeat, "LOOP_SILENCE_LEASES", 1)
    node = await nodes.node(lease_seconds=LEASE_SECONDS)
    owner = node.runs.ownership.owner
    run = await node.runs.send(nodes.stores.send(await nodes.stores.conversation(), "[hang=1]"))
    assert is_buried_while_busy(owner, nodes, 10 * LEASE_SECONDS)
    await eventually(lambda: node.runs.ownership.owner != owner)
    await eventually(lambda: run.id not in node.runs.open_runs.drivers)


@pytest.mark.promise("P7")
async def test_a_resumed_process_declares_no_owner_dead_before_its_own_heartbeat(
    nodes: Nodes,
) -> None:
    """C8: SIGSTOP, or a suspended machine."""
    owners = nodes.stores.records.owners
    clock = LeapClock()
    ours = Ownership(nodes.stores.records, clock, 15)
    await ours.register()
    await owners.register("lapsed", 0)
    for _ in range(2 * BEATS_PER_LEASE):
        await renew_lease(ours)
        clock.leap(ours.beat_seconds)
    clock.leap(20)
    await ours.bury_dead_owners()
    assert await owners.is_alive("lapsed")
    await renew_lease(ours)
    await ours.bury_dead_owners()
    assert await owners.is_alive("lapsed")
    for _ in range(BEATS_PER_LEASE + 1):
        clock.leap(ours.beat_seconds)
        await renew_lease(ours)
    await ours.bury_dead_owners()
    assert not await owners.is_alive("lapsed")


@pytest.mark.promise("P7")
async def test_an_owner_with_an_old_heartbeat_declares_nobody_dead(
    nodes: Nodes,
) -> None:
    """C8: judged by the clock of the database, so a suspended machine is noticed too."""
    owners = nodes.stores.records.owners
    for name in ("lapsed", "old"):
        await owners.register(name, 0)
    await owners.register("fresh", 1000)
    assert await owners.bury("old") == []
    assert await owners.bury("nobody") == []
    assert sorted(await owners.bury("fresh")) == ["lapsed", "old"]
    assert await owners.is_alive("fresh")


@pytest.mark.promise("P7")
async def test_a_heartbeat_returns_the_active_runs_of_its_owner(nodes: Nodes) -> None:
    """C4: the heartbeat brings what the audit compares with the run drivers."""
    node = await nodes.node(beats=False, keeps_up=False)
    runs = [
        await node.runs.send(nodes.stores.send(await nodes.stores.conversation(), "[hang=1]"))
        for _ in range(3)
    ]
    answer = await node.records.owners.beat(node.runs.ownership.owner)
    assert set(answer.held) == {run.id for run in runs}
    assert answer.cancelled == ()
    await beat(node.runs)
    assert node.runs.audit.found.total == 0
