"""Nodes within one process: services with their own connections to one Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from reattach.domain.clock import SystemClock
from reattach.domain.ids import new_uuid
from reattach.domain.limits import LEASE_SECONDS
from reattach.engine.base import Engine
from reattach.log.base import Log
from reattach.log.redis.log import RedisLog
from reattach.records.records import Records
from reattach.runs.attempts.policy import ContinuePolicy
from reattach.runs.service import RunService
from reattach.runs.upkeep.heartbeat import heartbeat
from reattach.runs.upkeep.schedule import listen, upkeep
from tests.support.faulty_stores import Faults, FaultyLog, faulty_records
from tests.support.stores import ENDS_RUNS, Stores, stores_of

CLOCK = SystemClock()


@dataclass
class Node:
    """A service that looks like a process to the others."""

    runs: RunService
    log: Log
    records: Records
    faults: Faults
    """The faults of its stores."""


class Nodes:
    """Creates nodes on shared stores. ``stores`` reads these over connections of its own."""

    def __init__(self, stack: AsyncExitStack, database_url: str, log_url: str) -> None:
        self.prefix = f"test-{new_uuid()}"
        self.database_url = database_url
        self.log_url = log_url
        self._stack = stack
        self.stores: Stores

    async def begin(self) -> None:
        records = await Records.open(self.database_url, clock=CLOCK)
        log = await self.open_log()
        self.stores = await self._stack.enter_async_context(stores_of(records, log, CLOCK))

    async def open_log(self, url: str | None = None) -> RedisLog:
        log = await RedisLog.connect(
            url or self.log_url, prefix=self.prefix, answer_seconds=1.0, poll_seconds=0.5
        )
        self._stack.push_async_callback(log.aclose)
        return log

    async def node(
        self,
        *,
        engine: Engine | None = None,
        faults: Faults | None = None,
        log_url: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        listens: bool = True,
        keeps_up: bool = True,
        beats: bool = True,
        policy: ContinuePolicy = ENDS_RUNS,
    ) -> Node:
        """Start a node, which is closed with the nodes."""
        faults = faults or Faults()
        records = await Records.open(self.database_url, clock=CLOCK)
        self._stack.push_async_callback(records.aclose)
        log = await self.open_log(log_url)
        runs = self.stores.service(
            log=FaultyLog(log, faults),
            records=faulty_records(records, faults),
            engine=engine,
            clock=CLOCK,
            lease_seconds=lease_seconds,
            policy=policy,
        )
        await runs.start()
        self._stack.push_async_callback(runs.aclose)
        if listens:
            await self._run_in_background(listen(runs, records, CLOCK))
        if beats:
            await self._stack.enter_async_context(heartbeat(runs, records, CLOCK))
        if keeps_up:
            await self._run_in_background(upkeep(runs, CLOCK, 3600))
        return Node(runs, log, records, faults)

    async def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def stop() -> None:
            task.cancel()
            await asyncio.wait({task}, timeout=10)

        self._stack.push_async_callback(stop)


@asynccontextmanager
async def nodes_on(database_url: str, log_url: str) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        nodes = Nodes(stack, database_url, log_url)
        await nodes.begin()
        yield nodes
