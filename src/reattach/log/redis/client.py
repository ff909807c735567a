"""How a process talks to Redis: which one a URL names, with how many connections, how patiently."""

import asyncio
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
from reattach.log.redis.scripts import Script

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What redis-py raises when it does not get what it asked for."""

_UNAVAILABLE: Final = "The event log can not be reached at present. Try again in a moment."
_COMMAND_CONNECTIONS: Final = 5
"""One for appends, one for states, and a few for reads, so that a slow one blocks no other."""
ANSWER_SECONDS: Final = 3.0
_CONNECT_SECONDS: Final = 2.0
_HEALTH_CHECK_SECONDS: Final = 30
"""After so much silence a connection is pinged before it is used: a firewall may have cut it."""
_OLDEST: Final = (7, 0)

Driver = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long operations wait for Redis."""

    answer_seconds: float = ANSWER_SECONDS
    """For the answer to a command; far more than it takes, and bearable for whoever waits."""
    replicas: int = 0
    """Replicas that must have a change before it counts."""


class RedisClient:
    """A Redis server, its successor after a failover, or a cluster.

    Commands take turns on at most five connections (of each node of a cluster), and there is
    one more while ``acquire_connection`` is in use. None is blocked by a command that waits.
    """

    def __init__(
        self, client: Driver, waiting: WaitPolicy, sentinels: Sequence[Redis] = ()
    ) -> None:
        self._driver = client
        self._sentinels = sentinels
        self._waiting = waiting
        self._permits = asyncio.Semaphore(_COMMAND_CONNECTIONS)
        self.is_cluster = isinstance(client, RedisCluster)
        """Keys of several runs can not be in one call."""

    @property
    def driver(self) -> Driver:
        """The driver's own, for those who look at the server and not at logs."""
        return self._driver

    async def run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
    ) -> Any:
        """What the script answers, or StoreUnavailableError.

        A connection that turns out to be dead is replaced and the script sent again, so a
        script may run twice.
        """
        rest = (len(keys), *keys, *arguments)
        try:
            return await self._execute("EVALSHA", script.sha, *rest)
        except NoScriptError:
            return await self._command("EVAL", script.text, *rest)
        except FAILURES as error:
            raise await self._unavailable(error) from error

    async def write(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]
    ) -> Any:
        """Like ``run``, and what the script wrote has reached the replicas that it is to reach."""
        if not self._waiting.replicas:
            return await self.run(script, keys, arguments)
        rest = (len(keys), *keys, *arguments)
        milliseconds = int(self._waiting.answer_seconds * 500)
        try:
            answer, reached = await self._execute_with_wait(script, rest, milliseconds)
        except FAILURES as error:
            raise await self._unavailable(error) from error
        if reached < self._waiting.replicas:
            raise StoreUnavailableError(_UNAVAILABLE)
        return answer

    async def get(self, key: bytes) -> bytes | None:
        return cast("bytes | None", await self._command("GET", key))

    async def set(self, key: bytes, value: str, expire_seconds: int) -> None:
        await self._command("SET", key, value, "EX", expire_seconds)

    async def scan(
        self, cursor: str | None, pattern: bytes, count: int
    ) -> tuple[list[bytes], str | None]:
        """Some of the keys that match, and the cursor for the next of them; None after the last.

        A cursor is that of Redis; in a cluster with the number of the primary before it.
        """
        if not isinstance(self._driver, RedisCluster):
            begin = cursor or "0"
            following, keys = await self._command("SCAN", begin, "MATCH", pattern, "COUNT", count)
            return keys, str(int(following)) if int(following) else None
        number, _, begin = (cursor or "0/0").partition("/")
        try:
            async with asyncio.timeout(self._waiting.answer_seconds), self._permits:
                primaries = sorted(self._driver.get_primaries(), key=lambda node: str(node.name))
                node = primaries[int(number)]
                scanned = await self._driver.execute_command(
                    "SCAN", begin, "MATCH", pattern, "COUNT", count, target_nodes=node
                )
        except FAILURES as error:
            raise await self._unavailable(error) from error
        found = next(iter(scanned.values())) if isinstance(scanned, dict) else scanned
        following, keys = found
        if int(following):
            return keys, f"{number}/{int(following)}"
        is_last = int(number) + 1 >= len(primaries)
        return keys, None if is_last else f"{int(number) + 1}/0"

    async def acquire_connection(self) -> AbstractConnection:
        """A connection for nobody else, to be given back to ``release_connection``.

        Raises one of FAILURES.
        """
        if isinstance(self._driver, RedisCluster):
            await self._driver.initialize()
            node = self._driver.get_random_node()
            connection: Any = node.connection_class(**node.connection_kwargs)
            await connection.connect()
        else:
            pool: Any = self._driver.connection_pool
            connection = await pool.get_connection()
        return cast("AbstractConnection", connection)

    async def release_connection(self, connection: AbstractConnection) -> None:
        with suppress(*FAILURES):
            await connection.disconnect(nowait=True)
        if isinstance(self._driver, Redis):
            await self._driver.connection_pool.release(connection)

    async def check(self) -> None:
        """Raise StartupError if Redis does not answer or is too old."""
        try:
            async with asyncio.timeout(2 * self._waiting.answer_seconds):
                await self._driver.ping()
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
            await self._driver.aclose()
            if isinstance(self._driver, Redis):
                await self._driver.connection_pool.disconnect()
            for sentinel in self._sentinels:
                await sentinel.aclose()

    async def _information(self) -> Mapping[str, object]:
        try:
            found = await self._driver.info("server")
        except RedisError:
            return {}  # It may be forbidden to this user.
        if self.is_cluster and "redis_version" not in found:
            found = next(iter(found.values()))
        return cast("Mapping[str, object]", found)

    async def _command(self, *command: bytes | str | int) -> Any:
        try:
            return await self._execute(*command)
        except FAILURES as error:
            raise await self._unavailable(error) from error

    async def _execute(self, *command: bytes | str | int) -> Any:
        async with asyncio.timeout(self._waiting.answer_seconds), self._permits:
            return await self._driver.execute_command(*command)

    async def _execute_with_wait(
        self, script: Script, rest: Sequence[bytes | str | int], milliseconds: int
    ) -> tuple[Any, int]:
        """WAIT is about its own connection's writes, so both go through one pipeline."""
        async with asyncio.timeout(self._waiting.answer_seconds), self._permits:
            for evaluation in ("EVALSHA", script.sha), ("EVAL", script.text):
                pipeline = cast("Redis", self._driver).pipeline(transaction=False)
                pipeline.execute_command(*evaluation, *rest)
                pipeline.execute_command("WAIT", self._waiting.replicas, milliseconds)
                answer, reached = await pipeline.execute(raise_on_error=False)
                if not isinstance(answer, NoScriptError):
                    break
            for reply in answer, reached:
                if isinstance(reply, Exception):
                    raise reply
            return answer, int(reached)

    async def _unavailable(self, error: Exception) -> StoreUnavailableError:
        if isinstance(error, ReadOnlyError) and isinstance(self._driver, Redis):
            # A former primary: the next connection finds the present one.
            await self._driver.connection_pool.disconnect(inuse_connections=False)
        return StoreUnavailableError(_UNAVAILABLE)


def is_too_old(version: str) -> bool:
    """Whether a Redis or Valkey that calls itself so, as ``7.2.4``, lacks what the log needs."""
    return tuple(map(int, version.split(".")[:2])) < _OLDEST


def report_defect(error: BaseException) -> None:
    """Of what goes on in spite of it: nobody waits for it, and it must not pass in silence."""
    context = {"message": "Following the event log met a defect.", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)


def client_for(url: str, waiting: WaitPolicy) -> RedisClient:
    """Return a client for the server that ``url`` names, not connected yet.

    Raises:
        StartupError: the URL makes no sense.
    """
    parts = urlsplit(url)
    try:
        match parts.scheme.rpartition("+")[2]:
            case "sentinel":
                return _by_sentinel(parts, waiting)
            case "cluster":
                if waiting.replicas:
                    raise StartupError(
                        "The event log cannot wait for replicas on a Redis Cluster.",
                        remedy="Remove wait_replicas from REATTACH_LOG_URL.",
                    )
                return RedisClient(_cluster(parts), waiting)
            case _:
                return RedisClient(_single(url, parts), waiting)
    except (RedisError, RedisClusterException, TypeError, ValueError) as error:
        raise StartupError(
            f"The address of Redis cannot be parsed: {error}.", remedy="Correct REATTACH_LOG_URL."
        ) from error


def _single(url: str, parts: SplitResult) -> Driver:
    pool = ConnectionPool(**_pool_options(), **_options(url, is_socket=parts.scheme == "unix"))
    return Redis(connection_pool=pool)


def _by_sentinel(parts: SplitResult, waiting: WaitPolicy) -> RedisClient:
    service = parts.path.strip("/")
    if not service:
        raise ValueError("a service is missing, as in redis+sentinel://host:26379/service")
    options = _options(_as_single(parts))
    sentinel = {
        name.removeprefix("sentinel_"): options.pop(name)
        for name in list(options)
        if name.startswith("sentinel_")
    }
    find: Callable[..., Sentinel] = Sentinel
    found = find(
        _hosts(parts, 26379),
        sentinel_kwargs={
            **_patience(),
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),  # There are other sentinels to ask.
            **sentinel,
        },
        **_pool_options(),
        **options,
    )
    return RedisClient(found.master_for(service, ssl=_has_tls(parts)), waiting, found.sentinels)


def _cluster(parts: SplitResult) -> Driver:
    options = _options(_as_single(parts))
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, 6379)],
        ssl=_has_tls(parts),
        **_pool_options(),
        **options,
    )


def _pool_options() -> dict[str, Any]:
    return {"max_connections": _COMMAND_CONNECTIONS + 1}


def _patience() -> dict[str, Any]:
    """For TCP. Answers are waited for in ``RedisClient``, which sees to it for the whole call."""
    return {
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": None,
        "socket_keepalive": True,
    }


def _options(url: str, *, is_socket: bool = False) -> dict[str, Any]:
    """What redis-py is to know of each connection: who we are, and what the URL says."""
    said = dict(parse_url(url))
    if is_socket and not said.get("path"):
        raise ValueError("a path is missing, as in unix:///run/redis.sock")
    options: dict[str, Any] = {
        **_patience(),
        "driver_info": None,
        "protocol": 2,
        "client_name": "reattach",
        "health_check_interval": _HEALTH_CHECK_SECONDS,
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        **said,
    }
    if is_socket:
        del options["socket_keepalive"]
    _refuse_unknown(options)
    return options


_OF_POOLS: Final = frozenset({"connection_class", "max_connections", "timeout"})


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Make a connection without using it: redis-py looks at options only then.

    Raises:
        ValueError: an option of the URL does not go with its scheme. Its value is not repeated.
    """
    make = options.get("connection_class", Connection)
    try:
        make(**{name: value for name, value in options.items() if name not in _OF_POOLS})
    except (TypeError, RedisError) as error:
        names = sorted(name for name in options if f"'{name}'" in str(error))
        raise ValueError(
            f"the option {names[0] if names else ''} can not be used with its scheme; "
            "those of TLS need rediss://"
        ) from None


def _as_single(parts: SplitResult) -> str:
    """The URL of one server with the same user, password and options."""
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
            raise ValueError("a host is missing")
        hosts.append((one.hostname, one.port or default_port))
    return hosts
