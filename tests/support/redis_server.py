"""The Redis of the tests: one server for all of them, a cluster and a sentinel."""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Iterator

import pytest

from reattach.testing.programs.ports import free_port
from reattach.testing.programs.program import START_SECONDS
from reattach.testing.programs.redis import RedisServer


class RedisCluster:
    """Nodes that share the slots between them."""

    def __init__(self, nodes: int = 2) -> None:
        self.nodes = [
            RedisServer(
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *("--cluster-node-timeout", "2000"),
                tcp=True,
            )
            for _ in range(nodes)
        ]
        slots = [16384 * number // nodes for number in range(nodes + 1)]
        for node, first, after in zip(self.nodes, slots, slots[1:], strict=False):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(after - 1))
        host, port = self.nodes[0].address
        for node in self.nodes[1:]:
            bus = self.nodes[0].command("CONFIG", "GET", "cluster-port").split()[-1].decode()
            node.command("CLUSTER", "MEET", host, str(port), bus)
        deadline = time.monotonic() + START_SECONDS
        while not all(self._is_ready(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise RuntimeError("The cluster does not come together.")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _is_ready(self, node: RedisServer) -> bool:
        said = node.command("CLUSTER", "INFO")
        return b"cluster_state:ok" in said and f"nodes:{len(self.nodes)}".encode() in said


class RedisSentinel:
    """A server and a sentinel that knows where it is, under the name ``mine``."""

    def __init__(self) -> None:
        self.primary = RedisServer(tcp=True)
        self._sentinel = RedisServer(tcp=True, sentinel_of=self.primary.port)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/mine"

    def close(self) -> None:
        self._sentinel.close()
        self.primary.close()


@functools.cache
def shared_url() -> str:
    """A Redis for all tests that need no more of it than that it is there.

    That is the one in REATTACH_TEST_REDIS_URL, if there is one. Tests name their keys so that
    they do not meet.
    """
    if url := os.environ.get("REATTACH_TEST_REDIS_URL"):
        return url
    server = RedisServer()
    atexit.register(server.close)
    return server.url


@functools.cache
def shared_cluster_url() -> str:
    cluster = RedisCluster()
    atexit.register(cluster.close)
    return cluster.url


@functools.cache
def shared_sentinel_url() -> str:
    sentinel = RedisSentinel()
    atexit.register(sentinel.close)
    return sentinel.url


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, to be broken. It keeps nothing when it is killed."""
    with RedisServer() as redis:
        yield redis
