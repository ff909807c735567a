from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from bench.faults.chaos import CHAOS_ENVIRONMENT
from bench.faults.tools import tool_environment
from reattach.runs.upkeep import schedule as upkeep
from reattach.testing.programs.cluster import Cluster
from reattach.testing.programs.redis import RedisServer
from tests.cluster.clients import Client, client_at
from tests.cluster.nodes import Nodes, nodes_on
from tests.support.redis_server import shared_url


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[Any]]:
    """Capture log lines: printing a traceback would read files in the event loop."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(autouse=True)
def orphans_are_looked_for_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the nodes of this process."""
    monkeypatch.setattr(upkeep, "RECOVERY_INTERVAL_SECONDS", 0.2)


@pytest.fixture
async def nodes(postgresql_url: str) -> AsyncIterator[Nodes]:
    async with nodes_on(postgresql_url, shared_url()) as nodes:
        yield nodes


@pytest.fixture
async def frail(postgresql_url: str, redis: RedisServer) -> AsyncIterator[Nodes]:
    """Nodes whose log is on ``redis``."""
    async with nodes_on(postgresql_url, redis.url) as nodes:
        yield nodes


@pytest.fixture(scope="package")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file to which the tools of ``cluster`` write."""
    return tmp_path_factory.mktemp("tools") / "calls"


@pytest.fixture(scope="package")
def one_cluster(journal: Path) -> Iterator[Cluster]:
    """Ends with the tests of this folder, because three idle servers take 8 % of a core."""
    with Cluster(environment={**CHAOS_ENVIRONMENT, **tool_environment(journal)}) as cluster:
        yield cluster


@pytest.fixture
def cluster(one_cluster: Cluster) -> Cluster:
    """Three server processes, all running and without faults."""
    one_cluster.mend()
    return one_cluster


@pytest.fixture
async def clients(cluster: Cluster) -> AsyncIterator[list[Client]]:
    """A client of each server."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(client_at(url, cluster.api_key)) for url in cluster.urls
        ]
