"""A cluster for tests: several server processes that share a PostgreSQL and a Redis."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT, TenantId, new_tenant_id
from reattach.records.database.database import upgrade
from reattach.records.records import Records
from reattach.testing.closing import Closing
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess

KEPT_ALWAYS: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""Options of a Redis that never loses an acknowledged write."""


class ClusterServer(ServerProcess):
    """One server of a cluster, which reaches each store through a relay of its own."""

    def __init__(self, data_dir: Path, redis: Relay, postgresql: Relay, **options: Any) -> None:
        super().__init__(data_dir, **options)
        self.redis = redis
        self.postgresql = postgresql


class Cluster(Closing):
    """Processes of ``reattach serve`` on free loopback ports, with a shared Redis and PostgreSQL.

    The context manager creates the schema, starts everything, and removes everything on exit.
    Tests may stop and restart ``servers``, ``redis`` and ``postgresql``. Every server gets
    ``environment`` and ``arguments``. Without ``relayed`` they reach the stores directly, as in
    production, and cannot be cut off from them.
    """

    def __init__(
        self,
        servers: int = 3,
        *,
        lease_seconds: float = 2.0,
        redis_options: Sequence[str] = KEPT_ALWAYS,
        arguments: Sequence[str] = ("--scripted", "--log-level", "warning"),
        environment: Mapping[str, str] | None = None,
        relayed: bool = True,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.servers: list[ClusterServer] = []
        self.api_key = ""
        """A key of the default tenant, which exists before the first server starts."""
        self.redis: RedisServer
        self.postgresql: PostgresqlServer
        self._count = servers
        self._redis_options = redis_options
        self._arguments = arguments
        self._environment = dict(environment or {})
        self._relayed = relayed
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """Stop everything. Idempotent."""
        self._stack.close()

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def new_key(self, tenant: TenantId | None = None) -> str:
        """Create an API key, by default of a new tenant. Servers accept it within seconds.

        It blocks, so do not call it in an event loop.
        """

        async def make() -> str:
            records = await Records.open(self.postgresql.url(), clock=SystemClock())
            try:
                _, secret = await records.keys.create(tenant or new_tenant_id(), "test")
            finally:
                await records.aclose()
            return secret

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(asyncio.run, make()).result()

    def mend(self) -> None:
        """Undo all faults: restart, resume and reconnect, and wait until everything answers."""
        if not self.postgresql.running:
            self.postgresql.start()
        if not self.redis.running:
            self.redis.start()
        for server in self.servers:
            server.resume()
            server.redis.mend()
            server.postgresql.mend()
        dead = [server for server in self.servers if not server.running]
        with ThreadPoolExecutor(self._count) as threads:
            list(threads.map(ClusterServer.start, dead))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that reaches the stores without relays."""
        return self._stores(self.redis.address, self.postgresql.address)

    @property
    def output(self) -> str:
        """The output of the servers so far, one after the other."""
        return "\n".join(
            f"Server {number}:\n{server.output}" for number, server in enumerate(self.servers)
        )

    def _start(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reattach-")))
        self.postgresql = stack.enter_context(PostgresqlServer())
        self.redis = stack.enter_context(RedisServer(*self._redis_options, tcp=True))
        upgrade(self.postgresql.url())
        # A server that starts without any key is open to all for some seconds.
        self.api_key = self.new_key(DEFAULT_TENANT)
        for number in range(self._count):
            redis = stack.enter_context(Relay(self.redis.address))
            postgresql = stack.enter_context(Relay(self.postgresql.address))
            through = self._stores(redis.address, postgresql.address)
            server = ClusterServer(
                directory / str(number),
                redis,
                postgresql,
                arguments=self._arguments,
                environment=through if self._relayed else self.environment,
            )
            self.servers.append(server)
            stack.callback(server.kill)
        with ThreadPoolExecutor(self._count) as threads:
            list(threads.map(ClusterServer.start, self.servers))

    def _stores(self, redis: tuple[str, int], postgresql: tuple[str, int]) -> dict[str, str]:
        host, port = redis
        return {
            "REATTACH_DATABASE_URL": self.postgresql.url(address=postgresql),
            "REATTACH_LOG_URL": f"redis://{host}:{port}/0",
            "REATTACH_LEASE_SECONDS": str(self.lease_seconds),
            **self._environment,
        }
