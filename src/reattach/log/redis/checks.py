"""What an operator should know of the Redis or Valkey that holds the logs."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError

from reattach.diagnostics import Diagnostic, Level
from reattach.domain.errors import ReattachError, StartupError
from reattach.domain.ids import new_uuid
from reattach.log.redis.client import (
    FAILURES,
    Driver,
    RedisClient,
    WaitPolicy,
    client_for,
    is_too_old,
)
from reattach.log.redis.log import RedisLog
from reattach.log.redis.scripts import Keys

CHECK_SECONDS: Final = 5.0
"""How long one check may take."""

_PINGS: Final = 15
_SLOW_SECONDS: Final = 0.02
"""A PING that takes longer is felt: every event waits for one answer."""
_NEEDED: Final = {"redis reachable", "redis log", "redis pub/sub"}
"""Checks that do what the log does."""

_ADDRESS: Final = "Check the address in REATTACH_LOG_URL, and that Redis is running."
_USER: Final = "Check the user and the password in REATTACH_LOG_URL (ACL LIST shows the users)."
_RIGHTS: Final = (
    "Give the user what the log needs, in Redis: ACL SETUSER name on >password ~prefix:* "
    "&prefix:* +@all -@dangerous +info (the prefix is reattach unless the URL says otherwise)."
)


@dataclass(frozen=True, slots=True)
class _Node:
    """One server, by name where there are several."""

    name: str
    ask: Callable[..., Awaitable[Any]]

    def said(self, detail: str) -> str:
        return f"{self.name}: {detail}" if self.name else detail


async def check_redis(url: str, *, prefix: str, wait_replicas: int) -> AsyncIterator[Diagnostic]:
    """Look at the Redis of the URL, one thing after the other; it raises nothing.

    A scratch log is written under the prefix, and deleted.
    """
    try:
        client = client_for(url, WaitPolicy(replicas=wait_replicas))
    except StartupError as error:
        yield Diagnostic("wrong", "redis reachable", error.fact, error.remedy or _ADDRESS)
        return
    try:
        reached = await _checked("redis reachable", partial(_reachable, client))
        for diagnostic in reached:
            yield diagnostic
        if any(diagnostic.level == "wrong" for diagnostic in reached):
            return
        async for diagnostic in _examine_nodes(client.driver, wait_replicas):
            yield diagnostic
        for diagnostic in await _checked("redis log", partial(_log, url, prefix, wait_replicas)):
            yield diagnostic
        for diagnostic in await _checked("redis pub/sub", partial(_news, client, prefix)):
            yield diagnostic
    finally:
        await client.aclose()


async def _checked(what: str, look: Callable[[], Awaitable[list[Diagnostic]]]) -> list[Diagnostic]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await look()
    except (ReattachError, *FAILURES) as error:
        cause: BaseException = error.__cause__ or error
        reason = str(cause) or "it does not answer in time"
        if isinstance(cause, NoPermissionError) or "no permissions" in reason.lower():
            # What only the doctor asks for may be forbidden: the log can do without.
            level: Level = "wrong" if what in _NEEDED else "warning"
            return [Diagnostic(level, what, reason, _RIGHTS)]
        return [Diagnostic("wrong", what, reason, _ADDRESS)]


async def _reachable(client: RedisClient) -> list[Diagnostic]:
    ping = cast("Callable[[], Awaitable[object]]", client.driver.ping)
    try:
        await ping()
    except (AuthenticationError, NoPermissionError) as error:
        return [Diagnostic("wrong", "redis reachable", str(error), _USER)]
    took = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await ping()
        took.append(time.perf_counter() - began)
    median, worst = statistics.median(took), max(took)
    said = f"PING takes {median * 1000:.1f} ms (median), {worst * 1000:.1f} ms (worst of {_PINGS})"
    if median > _SLOW_SECONDS:
        remedy = "Run the server nearer to Redis: every event waits for one answer of it."
        return [
            Diagnostic("ok", "redis reachable", "it answers"),
            Diagnostic("warning", "redis latency", said, remedy),
        ]
    return [
        Diagnostic("ok", "redis reachable", "it answers"),
        Diagnostic("ok", "redis latency", said),
    ]


async def _examine_nodes(client: Driver, wait_replicas: int) -> AsyncIterator[Diagnostic]:
    if isinstance(client, RedisCluster):
        for diagnostic in await _checked("redis cluster", partial(_cluster, client)):
            yield diagnostic
    for node in _nodes(client):
        for what, look in (
            ("redis version", _version),
            ("redis role", _role),
            ("redis persistence", _persistence),
            ("redis eviction", _eviction),
        ):
            for diagnostic in await _checked(what, partial(look, node)):
                yield diagnostic
        if wait_replicas:
            for diagnostic in await _checked(
                "redis replicas", partial(_replicas, node, wait_replicas)
            ):
                yield diagnostic


def _nodes(client: Driver) -> list[_Node]:
    if isinstance(client, Redis):
        return [_Node("", client.execute_command)]

    def asking(node: Any) -> Callable[..., Awaitable[Any]]:
        async def ask(*words: str) -> Any:
            return await client.execute_command(*words, target_nodes=node)

        return ask

    return [_Node(node.name, asking(node)) for node in client.get_primaries()]


async def _information(node: _Node, section: str) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", await node.ask("INFO", section))


async def _version(node: _Node) -> list[Diagnostic]:
    found = await _information(node, "server")
    version = str(found.get("redis_version", "0"))
    is_valkey = "valkey_version" in found
    shown = f"Valkey {found['valkey_version']}" if is_valkey else f"Redis {version}"
    if is_too_old(version):
        return [Diagnostic("wrong", "redis version", node.said(shown), "Use 7.0 or newer.")]
    return [Diagnostic("ok", "redis version", node.said(shown))]


async def _role(node: _Node) -> list[Diagnostic]:
    found = await _information(node, "replication")
    if found.get("role") != "master":
        of = f"{found.get('master_host')}:{found.get('master_port')}"
        remedy = "Name the primary in REATTACH_LOG_URL, or use redis+sentinel://, which finds it."
        return [Diagnostic("wrong", "redis role", node.said(f"it is a replica of {of}"), remedy)]
    replicas = int(found.get("connected_slaves", 0))
    return [Diagnostic("ok", "redis role", node.said(f"primary, replicas connected: {replicas}"))]


async def _persistence(node: _Node) -> list[Diagnostic]:
    found = await _information(node, "persistence")
    if int(found.get("aof_enabled", 0)):
        fsync = await _setting(node, "appendfsync") or "unknown"
        said = node.said(f"appendonly yes, appendfsync {fsync}")
        if found.get("aof_last_write_status", "ok") != "ok":
            remedy = "Look at Redis' log and its disk: the append-only file can not be written."
            return [Diagnostic("wrong", "redis persistence", said, remedy)]
        if fsync == "no":
            remedy = (
                "Set appendfsync everysec or always: now the operating system decides what a "
                "crash of the machine loses."
            )
            return [Diagnostic("warning", "redis persistence", said, remedy)]
        return [Diagnostic("ok", "redis persistence", said)]
    saves = await _setting(node, "save")
    said = f"appendonly no, snapshots {saves}" if saves else "appendonly no, no snapshots"
    lost = "what came after the last snapshot" if saves else "everything"
    remedy = (
        f"Set appendonly yes (CONFIG SET appendonly yes, and in redis.conf): a restart of Redis "
        f"loses {lost}, and open runs end with an error."
    )
    return [Diagnostic("warning", "redis persistence", node.said(said), remedy)]


async def _eviction(node: _Node) -> list[Diagnostic]:
    found = await _information(node, "memory")
    limit, policy = int(found.get("maxmemory", 0)), str(found.get("maxmemory_policy", "unknown"))
    if not limit:
        return [Diagnostic("ok", "redis eviction", node.said("no maxmemory: nothing is evicted"))]
    used = int(found.get("used_memory", 0))
    said = node.said(f"maxmemory {limit >> 20} MiB, used {used >> 20} MiB, policy {policy}")
    if policy != "noeviction":
        remedy = (
            "Set maxmemory-policy noeviction: any other one deletes logs that are still read, "
            "even those of open runs."
        )
        return [Diagnostic("wrong", "redis eviction", said, remedy)]
    if used > 0.8 * limit:
        remedy = "Raise maxmemory, or lower REATTACH_RETENTION_SECONDS: when it is full, runs fail."
        return [Diagnostic("warning", "redis eviction", said, remedy)]
    return [Diagnostic("ok", "redis eviction", said)]


async def _replicas(node: _Node, wanted: int) -> list[Diagnostic]:
    found = await _information(node, "replication")
    there = int(found.get("connected_slaves", 0))
    said = node.said(f"wait_replicas={wanted}, connected: {there}")
    if there < wanted:
        remedy = "Start more replicas or lower wait_replicas: without them no append is accepted."
        return [Diagnostic("wrong", "redis replicas", said, remedy)]
    return [Diagnostic("ok", "redis replicas", said)]


async def _cluster(client: RedisCluster) -> list[Diagnostic]:
    node = client.get_random_node()
    said: Any = await client.execute_command("CLUSTER INFO", target_nodes=node)
    state = said.get("cluster_state", "unknown")
    detail = f"state {state}, slots assigned: {said.get('cluster_slots_assigned')} of 16384"
    if state != "ok":
        remedy = (
            "Look at `redis-cli --cluster check`: logs of slots that are down are out of reach."
        )
        return [Diagnostic("wrong", "redis cluster", detail, remedy)]
    return [Diagnostic("ok", "redis cluster", detail)]


async def _log(url: str, prefix: str, wait_replicas: int) -> list[Diagnostic]:
    """All that the log does, on a scratch log."""
    log = await RedisLog.connect(
        url, prefix=prefix, retention_seconds=60, wait_replicas=wait_replicas
    )
    run_id = f"doctor-{new_uuid()}"
    async with aclosing(log):
        await log.open(run_id, 1, aliases=[run_id])
        try:
            await log.append(run_id, 1, 1, [b"data: {}\n\n"], close=True)
            await log.read(run_id, 0, max_bytes=1000, max_events=10)
        finally:
            await log.delete(run_id)
    return [Diagnostic("ok", "redis log", f"a log under {prefix}: was written, read and deleted")]


async def _news(client: RedisClient, prefix: str) -> list[Diagnostic]:
    """What followers need: a channel under the prefix, from one connection to another."""
    channel = Keys(prefix).head(f"doctor-{new_uuid()}").decode()
    connection = await client.acquire_connection()
    try:
        await connection.send_command("SUBSCRIBE", channel)
        await connection.read_response()
        publish = cast("Callable[..., Awaitable[Any]]", client.driver.publish)
        await publish(channel, b"doctor")
        await connection.read_response()
    finally:
        await client.release_connection(connection)
    return [
        Diagnostic("ok", "redis pub/sub", f"a message on a channel under {prefix}: came through")
    ]


async def _setting(node: _Node, name: str) -> str | None:
    """None where this user may not ask, or the service does not let anybody."""
    try:
        found: Mapping[str, str] = await node.ask("CONFIG GET", name)
    except FAILURES:
        return None
    return found.get(name)
