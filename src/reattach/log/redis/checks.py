"""Checks of the Redis or Valkey with the event log, for ``reattach doctor``."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError

from reattach.diagnostics import Diagnostic, Level
from reattach.domain.errors import ReattachError, StartupError
from reattach.domain.ids import Seq, Token, new_uuid
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
"""The timeout of one check."""

_PINGS: Final = 15
_SLOW_MS: Final = 20.0
"""A longer PING is noticeable, because every event waits for one answer."""
_NEEDED: Final = {"redis reachable", "redis log", "redis pub/sub"}
"""Checks that use the same commands as the log."""

_ADDRESS: Final = "Check the address in REATTACH_LOG_URL, and that Redis is running."
_USER: Final = "Check the user and the password in REATTACH_LOG_URL (ACL LIST shows the users)."
_RIGHTS: Final = (
    "Give the user the rights that the log needs, in Redis: ACL SETUSER name on >password "
    "~prefix:* &prefix:* +@all -@dangerous +info (the prefix is reattach unless the URL sets it)."
)


@dataclass(frozen=True, slots=True)
class _Node:
    """One server, with a name if there are several."""

    name: str
    ask: Callable[..., Awaitable[Any]]

    def describe(self, detail: str) -> str:
        return f"{self.name}: {detail}" if self.name else detail


Check = Callable[[], Awaitable[Diagnostic]]


async def check_redis(url: str, *, prefix: str, wait_replicas: int) -> AsyncIterator[Diagnostic]:
    """Check the Redis that ``url`` names and yield diagnostics as they come. Never raises.

    Writes a scratch log under the prefix, and deletes it.
    """
    try:
        client = client_for(url, WaitPolicy(replicas=wait_replicas))
    except StartupError as error:
        yield Diagnostic("wrong", "redis reachable", error.fact, error.remedy or _ADDRESS)
        return
    try:
        reachable = await _run_check("redis reachable", partial(_check_reachable, client))
        yield reachable
        if reachable.level == "wrong":
            return
        yield await _run_check("redis latency", partial(_check_latency, client))
        for name, check in _node_checks(client.driver, wait_replicas):
            yield await _run_check(name, check)
        yield await _run_check("redis log", partial(_check_log, url, prefix, wait_replicas))
        yield await _run_check("redis pub/sub", partial(_check_pub_sub, client, prefix))
    finally:
        await client.aclose()


async def _run_check(name: str, check: Check) -> Diagnostic:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except (ReattachError, *FAILURES) as error:
        cause: BaseException = error.__cause__ or error
        reason = str(cause) or "it does not answer in time"
        if isinstance(cause, NoPermissionError) or "no permissions" in reason.lower():
            # The log works without the commands that only the doctor uses.
            level: Level = "wrong" if name in _NEEDED else "warning"
            return Diagnostic(level, name, reason, _RIGHTS)
        return Diagnostic("wrong", name, reason, _ADDRESS)


def _pinger(client: RedisClient) -> Callable[[], Awaitable[object]]:
    return cast("Callable[[], Awaitable[object]]", client.driver.ping)


async def _check_reachable(client: RedisClient) -> Diagnostic:
    try:
        await _pinger(client)()
    except (AuthenticationError, NoPermissionError) as error:
        return Diagnostic("wrong", "redis reachable", str(error), _USER)
    return Diagnostic("ok", "redis reachable", "it answers")


async def _check_latency(client: RedisClient) -> Diagnostic:
    ping = _pinger(client)
    took_ms = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        await ping()
        took_ms.append(1000 * (time.perf_counter() - began))
    median = statistics.median(took_ms)
    detail = f"PING takes {median:.1f} ms (median), {max(took_ms):.1f} ms (worst of {_PINGS})"
    if median > _SLOW_MS:
        remedy = "Run the server closer to Redis, because every event waits for its answer."
        return Diagnostic("warning", "redis latency", detail, remedy)
    return Diagnostic("ok", "redis latency", detail)


def _node_checks(driver: Driver, wait_replicas: int) -> Iterator[tuple[str, Check]]:
    if isinstance(driver, RedisCluster):
        yield "redis cluster", partial(_check_cluster, driver)
    for node in _nodes(driver):
        yield "redis version", partial(_check_version, node)
        yield "redis role", partial(_check_role, node)
        yield "redis persistence", partial(_check_persistence, node)
        yield "redis eviction", partial(_check_eviction, node)
        if wait_replicas:
            yield "redis replicas", partial(_check_replicas, node, wait_replicas)


def _nodes(driver: Driver) -> list[_Node]:
    if isinstance(driver, Redis):
        return [_Node("", driver.execute_command)]
    return [
        _Node(node.name, partial(driver.execute_command, target_nodes=node))
        for node in driver.get_primaries()
    ]


async def _information(node: _Node, section: str) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", await node.ask("INFO", section))


async def _check_version(node: _Node) -> Diagnostic:
    found = await _information(node, "server")
    version = str(found.get("redis_version", "0"))
    is_valkey = "valkey_version" in found
    shown = f"Valkey {found['valkey_version']}" if is_valkey else f"Redis {version}"
    if is_too_old(version):
        return Diagnostic("wrong", "redis version", node.describe(shown), "Use 7.0 or newer.")
    return Diagnostic("ok", "redis version", node.describe(shown))


async def _check_role(node: _Node) -> Diagnostic:
    found = await _information(node, "replication")
    if found.get("role") != "master":
        of = f"{found.get('master_host')}:{found.get('master_port')}"
        remedy = "Name the primary in REATTACH_LOG_URL, or use redis+sentinel://, which finds it."
        return Diagnostic("wrong", "redis role", node.describe(f"it is a replica of {of}"), remedy)
    replicas = int(found.get("connected_slaves", 0))
    return Diagnostic("ok", "redis role", node.describe(f"primary, replicas connected: {replicas}"))


async def _check_persistence(node: _Node) -> Diagnostic:
    found = await _information(node, "persistence")
    if int(found.get("aof_enabled", 0)):
        fsync = await _setting(node, "appendfsync") or "unknown"
        detail = node.describe(f"appendonly yes, appendfsync {fsync}")
        if found.get("aof_last_write_status", "ok") != "ok":
            remedy = "Check the log and the disk of Redis: the append-only file cannot be written."
            return Diagnostic("wrong", "redis persistence", detail, remedy)
        if fsync == "no":
            remedy = (
                "Set appendfsync to everysec or always. With no, a crash of the machine loses "
                "whatever the operating system has not written yet."
            )
            return Diagnostic("warning", "redis persistence", detail, remedy)
        return Diagnostic("ok", "redis persistence", detail)
    saves = await _setting(node, "save")
    detail = f"appendonly no, snapshots {saves}" if saves else "appendonly no, no snapshots"
    lost = "everything since the last snapshot" if saves else "everything"
    remedy = (
        "Set appendonly yes (CONFIG SET appendonly yes, and in redis.conf). Without it a restart "
        f"of Redis loses {lost}, and open runs end with an error."
    )
    return Diagnostic("warning", "redis persistence", node.describe(detail), remedy)


async def _check_eviction(node: _Node) -> Diagnostic:
    found = await _information(node, "memory")
    limit, policy = int(found.get("maxmemory", 0)), str(found.get("maxmemory_policy", "unknown"))
    if not limit:
        return Diagnostic("ok", "redis eviction", node.describe("no maxmemory: nothing is evicted"))
    used = int(found.get("used_memory", 0))
    detail = node.describe(f"maxmemory {limit >> 20} MiB, used {used >> 20} MiB, policy {policy}")
    if policy != "noeviction":
        remedy = (
            "Set maxmemory-policy noeviction. Any other policy deletes logs in use, even those of "
            "open runs."
        )
        return Diagnostic("wrong", "redis eviction", detail, remedy)
    if used > 0.8 * limit:
        remedy = "Raise maxmemory or lower REATTACH_RETENTION_SECONDS. Runs fail when it is full."
        return Diagnostic("warning", "redis eviction", detail, remedy)
    return Diagnostic("ok", "redis eviction", detail)


async def _check_replicas(node: _Node, wanted: int) -> Diagnostic:
    found = await _information(node, "replication")
    there = int(found.get("connected_slaves", 0))
    detail = node.describe(f"wait_replicas={wanted}, connected: {there}")
    if there < wanted:
        remedy = "Start more replicas or lower wait_replicas. Without them every append fails."
        return Diagnostic("wrong", "redis replicas", detail, remedy)
    return Diagnostic("ok", "redis replicas", detail)


async def _check_cluster(client: RedisCluster) -> Diagnostic:
    node = client.get_random_node()
    info: Any = await client.execute_command("CLUSTER INFO", target_nodes=node)
    state = info.get("cluster_state", "unknown")
    detail = f"state {state}, slots assigned: {info.get('cluster_slots_assigned')} of 16384"
    if state != "ok":
        remedy = "Run `redis-cli --cluster check`. Logs in slots that are down cannot be reached."
        return Diagnostic("wrong", "redis cluster", detail, remedy)
    return Diagnostic("ok", "redis cluster", detail)


async def _check_log(url: str, prefix: str, wait_replicas: int) -> Diagnostic:
    """Open, append to, read and delete a scratch log."""
    log = await RedisLog.connect(
        url, prefix=prefix, retention_seconds=60, wait_replicas=wait_replicas
    )
    run_id = f"doctor-{new_uuid()}"
    async with aclosing(log):
        writer = await log.open(run_id, Token(1), aliases=[run_id])
        try:
            await writer.append(Seq(1), [b"data: {}\n\n"], close=True)
            await log.read(run_id, Seq(0), max_bytes=1000, max_events=10)
        finally:
            await log.delete(run_id)
    return Diagnostic("ok", "redis log", f"a log under {prefix}: was written, read and deleted")


async def _check_pub_sub(client: RedisClient, prefix: str) -> Diagnostic:
    """Publish a message and receive it on another connection, as followers do."""
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
    return Diagnostic("ok", "redis pub/sub", f"a message on a channel under {prefix}: arrived")


async def _setting(node: _Node, name: str) -> str | None:
    """Return a setting of the server; None if the user or the hosting service may not read it."""
    try:
        found: Mapping[str, str] = await node.ask("CONFIG GET", name)
    except FAILURES:
        return None
    return found.get(name)
