"""The cost of idle readers of silent runs on three servers and their stores."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psycopg

from bench.measuring.machine import cost_of
from bench.measuring.reader import ServerAddress, conversation_with, open_stream
from bench.options import Options
from reattach.testing.programs.cluster import Cluster

RUNS = 100
READERS = (0, 100, 300, 500)
"""From 300 readers on, every run has readers on every server."""
SETTLE_SECONDS = 11.0
"""Time after which PostgreSQL's connections have flushed their statistics."""
WINDOW_SECONDS = 12.0  # four polls of Redis by each server
_CALLS = re.compile(rb"cmdstat_([^:]+):calls=(\d+)")
LEASE_SECONDS = 15.0


@dataclass(frozen=True)
class Counts:
    """The counters of the stores and servers at one moment."""

    commands: int
    """Commands of Redis, including those within scripts."""
    scripts: int
    """Script calls, which are nearly all requests of a server to Redis."""
    transactions: int
    cpu_seconds: tuple[float, ...]

    @classmethod
    def of(cls, cluster: Cluster) -> Self:
        stats = cluster.redis.command("INFO", "commandstats")
        calls = {name: int(count) for name, count in _CALLS.findall(stats)}
        (transactions,) = asked(
            cluster,
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'",
        )
        cpu = (cost_of(server.pid).cpu_seconds for server in cluster.servers)
        scripts = sum(calls.get(name, 0) for name in (b"eval", b"evalsha"))
        return cls(sum(calls.values()), scripts, transactions, tuple(cpu))


def asked(cluster: Cluster, statement: str) -> tuple[int, ...]:
    """Query one row of integers from PostgreSQL."""
    with psycopg.connect(cluster.postgresql.socket_url()) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


def connections(cluster: Cluster) -> Mapping[str, list[int]]:
    """Count the connections of each server to each store, and last the store's own count."""
    listed = cluster.redis.command("CLIENT", "LIST").count(b"laddr=127.0.0.1")
    (active,) = asked(
        cluster,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reattach'",
    )
    return {
        "Redis": [*(server.redis.open_connections for server in cluster.servers), listed],
        "PostgreSQL": [*(server.postgresql.open_connections for server in cluster.servers), active],
    }


async def silent_run(server: ServerAddress) -> str:
    """Start a run that yields one word and then nothing, and return its conversation."""
    conversation_id = await asyncio.to_thread(conversation_with, server, "scripted/echo")
    body = {"input": "[hang=1]", "background": True, "include_pings": False}
    _, writer = await open_stream(server, f"/v1/conversations/{conversation_id}/messages", body)
    writer.close()
    return conversation_id


async def measured(cluster: Cluster, readers: int, *, window_seconds: float) -> None:
    await asyncio.sleep(SETTLE_SECONDS)
    before = Counts.of(cluster)
    await asyncio.sleep(window_seconds)
    after = Counts.of(cluster)
    cpu = (
        100 * (late - early) / window_seconds
        for early, late in zip(before.cpu_seconds, after.cpu_seconds, strict=True)
    )
    print(f"  {readers} readers on {RUNS} runs:")
    for store, (*own, listed) in connections(cluster).items():
        print(f"    {store}: {listed} connections, by server {' + '.join(map(str, own))}")
    print(
        f"    {(after.commands - before.commands) / window_seconds:.1f} Redis commands/s "
        f"in {(after.scripts - before.scripts) / window_seconds:.1f} calls/s, "
        f"{(after.transactions - before.transactions) / window_seconds:.1f} "
        "PostgreSQL transactions/s; CPU of the servers "
        f"{', '.join(f'{percent:.1f} %' for percent in cpu)} of a core",
        flush=True,
    )


async def run(cluster: Cluster, *, window_seconds: float = WINDOW_SECONDS) -> None:
    servers = [ServerAddress(url, cluster.api_key) for url in cluster.urls]
    conversations = [await silent_run(servers[number % 3]) for number in range(RUNS)]
    opened: list[asyncio.StreamWriter] = []
    for readers in READERS:
        for number in range(len(opened), readers):
            silent = number % RUNS
            path = f"/v1/conversations/{conversations[silent]}/stream"
            server = servers[
                (silent + 1 + number // RUNS) % 3
            ]  # first on servers that do not own the run
            _, writer = await open_stream(server, path, {"include_pings": False})
            opened.append(writer)
        await measured(cluster, readers, window_seconds=window_seconds)
    for writer in opened:
        writer.close()


def main(_options: Options) -> None:
    with Cluster(lease_seconds=LEASE_SECONDS) as cluster:
        asyncio.run(run(cluster))
