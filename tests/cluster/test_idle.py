"""The cost of idle readers for the stores, over several processes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from bench.cluster import Counts, connections
from reattach.records.base import Run
from reattach.records.database.postgresql import READERS as READERS_POOL
from reattach.records.database.postgresql import WRITERS
from reattach.testing.programs.cluster import Cluster
from tests.cluster.clients import WAIT_SECONDS, Client
from tests.cluster.nodes import Nodes
from tests.support.engines import SteppedEngine
from tests.support.in_process_readers import a_thousand_of_each, assert_whole

RUNS = 6
READERS = 60
WINDOW_SECONDS = 1.0

POSTGRESQL = WRITERS + READERS_POOL + 2
"""Connections of a server to PostgreSQL: two pools, a listener and a heartbeat."""

REDIS = 6
"""Most connections of a server to Redis: five for commands and one for the subscription."""


async def fill_pools(cluster: Cluster, clients: list[Client]) -> None:
    """Make the servers open all their connections to PostgreSQL."""
    async with asyncio.timeout(WAIT_SECONDS):
        while connections(cluster)["PostgreSQL"][:3] != [POSTGRESQL] * 3:
            busy = [client for client in clients for _ in range(10)]
            await asyncio.gather(
                *(client.agent() for client in busy),
                *(client.got("/v1/runs/", limit=1) for client in busy),
            )


async def commands_in_a_window(cluster: Cluster) -> int:
    before = Counts.of(cluster).commands
    await asyncio.sleep(WINDOW_SECONDS)
    return Counts.of(cluster).commands - before


@pytest.mark.promise("P13")
async def test_connections_and_commands_do_not_grow_with_idle_readers(
    cluster: Cluster, clients: list[Client]
) -> None:
    async with AsyncExitStack() as stack:
        run_ids = []
        for number in range(RUNS):
            conversation_id = await clients[0].conversation()
            sent = clients[number % 3].sent(conversation_id, "[hang=1]")
            stream = await stack.enter_async_context(sent)
            await stream.until(2)
            run_ids.append(stream.run_id)

        async def follow_all(readers: AsyncExitStack) -> None:
            for number in range(READERS):
                path = f"/v1/runs/{run_ids[number % RUNS]}/stream"
                client = clients[(number // RUNS) % 3]
                method = "GET" if number % 2 else "POST"
                opened = client.stream(path, {}, cursor=1, method=method)
                await (await readers.enter_async_context(opened)).until(2)

        await fill_pools(cluster, clients)
        commands_without = await commands_in_a_window(cluster)
        async with AsyncExitStack() as readers:
            await follow_all(readers)
            held = connections(cluster)
            assert held["PostgreSQL"] == [POSTGRESQL] * 3 + [3 * POSTGRESQL]
            assert max(held["Redis"][:3]) <= REDIS
            assert held["Redis"][3] <= 3 * REDIS
            # Their first reads may end in the first windows, and work at intervals fall into one.
            async with asyncio.timeout(WAIT_SECONDS):
                while await commands_in_a_window(cluster) >= commands_without + READERS // 2:
                    pass
        for client, run_id in zip(clients, run_ids, strict=False):
            run = await client.got(f"/v1/runs/{run_id}")
            assert run["status"] == "running"
        for run_id in run_ids:
            agent_id = (await clients[0].got(f"/v1/runs/{run_id}"))["agent_id"]
            await clients[1].post(f"/v1/agents/{agent_id}/messages/cancel", {"run_ids": [run_id]})


@pytest.mark.promise("P13", "P2", "P4", "P12")
async def test_a_thousand_pages_and_sdks_at_another_process_cost_the_stores_nothing(
    nodes: Nodes,
) -> None:
    engine = SteppedEngine("one ", "two ", "three ")
    owner, other = await nodes.node(engine=engine), await nodes.node(beats=False, keeps_up=False)
    run = await owner.runs.send(nodes.stores.send(await nodes.stores.conversation(), "count"))
    engine.step(2)
    async with a_thousand_of_each(other.runs, run) as readers:
        before = other.faults.calls.copy()
        engine.step()
        for reader in readers:
            await reader.until_seq(3)
        assert other.faults.calls - before == {}
        engine.step()
        await assert_whole(readers, await frames_of_ended(nodes, run))
        # They wait for the record of the run's end together.
        assert (other.faults.calls - before).total() < READERS


async def frames_of_ended(nodes: Nodes, run: Run) -> list[bytes]:
    async with asyncio.timeout(WAIT_SECONDS):
        while (await nodes.stores.run(run)).status.is_active:
            await asyncio.sleep(0.01)
    return await nodes.stores.frames(run)
