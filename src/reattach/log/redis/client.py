"""The connection to Redis: its URL, its connections and its timeouts."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)

from reattach.domain.errors import StartupError, StoreUnavailableError
from reattach.log.redis.connections import Connections
from reattach.log.redis.scripts import Script

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""The exceptions of redis-py for a command that failed or was not answered."""

_UNAVAILABLE: Final = "The event log cannot be reached at present. Try again in a moment."
_COMMAND_CONNECTIONS: Final = 5
"""One for appends, one for states, and a few for reads, so that a slow one blocks no other."""
ANSWER_SECONDS: Final = 3.0
_CONNECT_SECONDS: Final = 2.0
_HEALTH_CHECK_SECONDS: Final = 30
"""A connection idle for longer is pinged before use, because a firewall may have cut it."""
_OLDEST: Final = (7, 0)

Driver = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long operations wait for Redis, and for how many replicas."""

    answer_seconds: float = ANSWER_SECONDS
    """The timeout of a command: far longer than it takes, and bearable for the caller."""
    replicas: int = 0
    """Replicas that must have a write before it is acknowledged."""


class RedisClient:
    """A client for a Redis server, its successor after a failover, or a cluster.

    Commands share at most five connections (per node of a cluster). ``acquire_connection`` uses one
    more. No command blocks a connection, unless writes wait for replicas.
    """

    def __init__(
        self, driver: Driver, wait_policy: WaitPolicy, sentinels: Sequence[Redis] = ()
    ) -> None:
        self.driver = driver
        """The client of redis-py, for checks of the server itself."""
        self._sentinels = sentinels
        self.wait_policy = wait_policy
        self._permits = asyncio.Semaphore(_COMMAND_CONNECTIONS)
        self.answered_at = -math.inf
        """When Redis last answered a command, by the monotonic clock; none has failed since."""
        # Commands that wait for replicas go through the pool, which must not be used up.
        self._connections = (
            Connections(driver.connection_pool)
            if isinstance(driver, Redis) and not wait_policy.replicas
            else None
        )
        self.is_cluster = isinstance(driver, RedisCluster)
        """Keys of several runs cannot be in one call."""

    async def run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
    ) -> Any:
        """Run the script and return its answer.

        If the connection is dead, the script is sent again on a new one, so it may run twice.

        Raises:
            StoreUnavailableError: Redis did not answer, or refused.
        """
        rest = (len(keys), *keys, *arguments)
        try:
            return await self._execute("EVALSHA", script.sha, *rest)
        except NoScriptError:
            return await self._command("EVAL", script.text, *rest)
        except FAILURES as error:
            raise await self._unavailable_error(error) from error

    async def write(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
    ) -> Any:
        """Like ``run``, and wait until the required number of replicas has the writes."""
        if not self.wait_policy.replicas:
            return await self.run(script, keys, arguments)
        rest = (len(keys), *keys, *arguments)
        try:
            answer, reached = await self._execute_with_wait(script, rest)
        except FAILURES as error:
            raise await self._unavailable_error(error) from error
        if reached < self.wait_policy.replicas:
            raise StoreUnavailableError(_UNAVAILABLE)
        return answer

    async def get(self, key: bytes) -> bytes | None:
        return cast("bytes | None", await self._command("GET", key))

    async def set(self, key: bytes, value: str, expire_seconds: int) -> None:
        await self._command("SET", key, value, "EX", expire_seconds)

    async def scan(
        self, cursor: str | None, pattern: bytes, count: int
    ) -> tuple[list[bytes], str | None]:
        """Return some matching keys and the cursor of the next ones; None after the last.

        The cursor is the one of Redis, in a cluster after the number of the primary.
        """
        if not isinstance(self.driver, RedisCluster):
            begin = cursor or "0"
            following, keys = await self._command("SCAN", begin, "MATCH", pattern, "COUNT", count)
            return keys, str(int(following)) if int(following) else None
        number, _, begin = (cursor or "0/0").partition("/")
        try:
            async with asyncio.timeout(self.wait_policy.answer_seconds), self._permits:
                primaries = sorted(self.driver.get_primaries(), key=lambda node: str(node.name))
                node = primaries[int(number)]
                scanned = await self.driver.execute_command(
                    "SCAN", begin, "MATCH", pattern, "COUNT", count, target_nodes=node
                )
        except FAILURES as error:
            raise await self._unavailable_error(error) from error
        found = next(iter(scanned.values())) if isinstance(scanned, dict) else scanned
        following, keys = found
        if int(following):
            return keys, f"{number}/{int(following)}"
        is_last = int(number) + 1 >= len(primaries)
        return keys, None if is_last else f"{int(number) + 1}/0"

    async def acquire_connection(self) -> AbstractConnection:
        """Return a connection for exclusive use, until ``release_connection``.

        Raises:
            One of FAILURES.
        """
        if isinstance(self.driver, RedisCluster):
            await self.driver.initialize()
            node = self.driver.get_random_node()
            connection: Any = node.connection_class(**node.connection_kwargs)
            await connection.connect()
        else:
            pool: Any = self.driver.connection_pool
            connection = await pool.get_connection()
        return cast("AbstractConnection", connection)

    async def release_connection(self, connection: AbstractConnection) -> None:
        with suppress(*FAILURES):
            await connection.disconnect(nowait=True)
        if isinstance(self.driver, Redis):
            await self.driver.connection_pool.release(connection)

    async def check(self) -> None:
        """Check that Redis answers and is new enough.

        Raises:
            StartupError: Redis does not answer or is too old.
        """
        try:
            async with asyncio.timeout(2 * self.wait_policy.answer_seconds):
                await self.driver.ping()
                information = await self._information()
        except (*FAILURES, TypeError, ValueError) as error:
            raise StartupError(
                f"Redis cannot be used for the event log: {str(error) or 'it does not answer'}.",
                remedy="Check the address, the options and the password in REATTACH_LOG_URL, and "
                "that Redis is running.",
            ) from error
        version = str(information.get("redis_version", "7.0"))
        if is_too_old(version):
            raise StartupError(
                f"The event log needs Redis or Valkey 7.0 or newer, and this server is {version}.",
                remedy="Upgrade it, or name another server in REATTACH_LOG_URL.",
            )

    async def aclose(self) -> None:
        with suppress(*FAILURES):
            await self.driver.aclose()
            if isinstance(self.driver, Redis):
                await self.driver.connection_pool.disconnect()
            for sentinel in self._sentinels:
                await sentinel.aclose()

    async def _information(self) -> Mapping[str, object]:
        try:
            found = await self.driver.info("server")
        except RedisError:
            return {}  # This user may not be allowed to ask.
        if self.is_cluster and "redis_version" not in found:
            found = next(iter(found.values()))
        return cast("Mapping[str, object]", found)

    async def _command(self, *command: bytes | str | int) -> Any:
        try:
            return await self._execute(*command)
        except FAILURES as error:
            raise await self._unavailable_error(error) from error

    async def _execute(self, *command: bytes | str | int) -> Any:
        async with asyncio.timeout(self.wait_policy.answer_seconds), self._permits:
            if self._connections is None:
                return await self.driver.execute_command(*command)
            answer = await self._connections.execute(*command)
            self.answered_at = time.monotonic()
            return answer

    async def _execute_with_wait(
        self, script: Script, rest: Sequence[bytes | str | int]
    ) -> tuple[Any, int]:
        """Run the script and WAIT in one pipeline, because WAIT covers only its own connection."""
        # Half of the timeout, so that the answer still arrives.
        wait_ms = int(self.wait_policy.answer_seconds * 500)
        async with asyncio.timeout(self.wait_policy.answer_seconds), self._permits:
            for evaluation in ("EVALSHA", script.sha), ("EVAL", script.text):
                pipeline = cast("Redis", self.driver).pipeline(transaction=False)
                pipeline.execute_command(*evaluation, *rest)
                pipeline.execute_command("WAIT", self.wait_policy.replicas, wait_ms)
                answer, reached = await pipeline.execute(raise_on_error=False)
                if not isinstance(answer, NoScriptError):
                    break
            for reply in answer, reached:
                if isinstance(reply, Exception):
                    raise reply
            return answer, int(reached)

    async def _unavailable_error(self, error: Exception) -> StoreUnavailableError:
        self.answered_at = -math.inf
        if isinstance(error, ReadOnlyError) and isinstance(self.driver, Redis):
            # This is a former primary. A new connection finds the current one.
            if self._connections is not None:
                await self._connections.reconnect()
            await self.driver.connection_pool.disconnect(inuse_connections=False)
        return StoreUnavailableError(_UNAVAILABLE)


def is_too_old(version: str) -> bool:
    """Return whether this version of Redis or Valkey, such as ``7.2.4``, is unsupported."""
    return tuple(map(int, version.split(".")[:2])) < _OLDEST


def client_for(url: str, wait_policy: WaitPolicy) -> RedisClient:
    """Return a client for the server that ``url`` names, not connected yet.

    Raises:
        StartupError: The URL is not valid.
    """
    parts = urlsplit(url)
    try:
        match parts.scheme.rpartition("+")[2]:
            case "sentinel":
                return _sentinel_client(parts, wait_policy)
            case "cluster":
                if wait_policy.replicas:
                    raise StartupError(
                        "The event log cannot wait for replicas on a Redis Cluster.",
                        remedy="Remove wait_replicas from REATTACH_LOG_URL.",
                    )
                return RedisClient(_cluster_driver(parts), wait_policy)
            case _:
                return RedisClient(_single_driver(url, parts), wait_policy)
    except (RedisError, RedisClusterException, TypeError, ValueError) as error:
        raise StartupError(
            f"The URL of Redis is not valid: {error}.", remedy="Correct REATTACH_LOG_URL."
        ) from error


def _single_driver(url: str, parts: SplitResult) -> Driver:
    pool = ConnectionPool(
        **_pool_options(), **_connection_options(url, is_socket=parts.scheme == "unix")
    )
    return Redis(connection_pool=pool)


def _sentinel_client(parts: SplitResult, wait_policy: WaitPolicy) -> RedisClient:
    service = parts.path.strip("/")
    if not service:
        raise ValueError("it names no service, as in redis+sentinel://host:26379/service")
    options = _connection_options(_single_server_url(parts))
    sentinel = {
        name.removeprefix("sentinel_"): options.pop(name)
        for name in list(options)
        if name.startswith("sentinel_")
    }
    find: Callable[..., Sentinel] = Sentinel
    found = find(
        _hosts(parts, 26379),
        sentinel_kwargs={
            **_tcp_options(),
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),  # The next sentinel is asked instead.
            **sentinel,
        },
        **_pool_options(),
        **options,
    )
    return RedisClient(found.master_for(service, ssl=_has_tls(parts)), wait_policy, found.sentinels)


def _cluster_driver(parts: SplitResult) -> Driver:
    options = _connection_options(_single_server_url(parts))
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, 6379)],
        ssl=_has_tls(parts),
        **_pool_options(),
        **options,
    )


def _pool_options() -> dict[str, Any]:
    return {"max_connections": _COMMAND_CONNECTIONS + 1}


def _tcp_options() -> dict[str, Any]:
    """Return the options of TCP connections. ``RedisClient`` has the timeout of a whole call."""
    return {
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": None,
        "socket_keepalive": True,
    }


def _connection_options(url: str, *, is_socket: bool = False) -> dict[str, Any]:
    """Return the options of each connection for redis-py, with those of the URL."""
    in_url = dict(parse_url(url))
    if is_socket and not in_url.get("path"):
        raise ValueError("it has no path, as in unix:///run/redis.sock")
    options: dict[str, Any] = {
        **_tcp_options(),
        "driver_info": None,
        "protocol": 2,
        "client_name": "reattach",
        "health_check_interval": _HEALTH_CHECK_SECONDS,
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        **in_url,
    }
    if is_socket:
        del options["socket_keepalive"]
    _check_options(options)
    return options


_POOL_ONLY_OPTIONS: Final = frozenset({"connection_class", "max_connections", "timeout"})


def _check_options(options: dict[str, Any]) -> None:
    """Check the options by creating an unused connection, since redis-py checks them only then.

    Raises:
        ValueError: The scheme does not support an option. The error does not show its value.
    """
    make = options.get("connection_class", Connection)
    try:
        make(**{name: value for name, value in options.items() if name not in _POOL_ONLY_OPTIONS})
    except (TypeError, RedisError) as error:
        names = sorted(name for name in options if f"'{name}'" in str(error))
        option = f"the option {names[0]}" if names else "one of its options"
        raise ValueError(
            f"{option} does not work with its scheme (remove it, or use rediss:// for an option "
            "of TLS)"
        ) from None


def _single_server_url(parts: SplitResult) -> str:
    """Return a URL of one server with the same user, password and options."""
    user, at, _ = parts.netloc.rpartition("@")
    return f"redis://{user}{at}?{parts.query}"


def _has_tls(parts: SplitResult) -> bool:
    return parts.scheme.startswith("rediss")


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    listed = parts.netloc.rpartition("@")[2]
    hosts = []
    for each in listed.split(","):
        one = urlsplit(f"//{each}")
        if not one.hostname:
            raise ValueError("a host is missing, as in redis+cluster://host:6379,host:6379")
        hosts.append((one.hostname, one.port or default_port))
    return hosts
