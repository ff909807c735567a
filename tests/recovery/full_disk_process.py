"""Write and delete far more than fits into its files, whose size is limited like a full disk.

Arguments: which store (``events`` or ``records``), and its file. It exits with 0 if
everything was written despite failed commits, and prints their number.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable
from unittest import mock

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import DEFAULT_TENANT, Token, new_agent_id, new_message_id
from reattach.domain.messages import Message, Role, TextPart
from reattach.log.sqlite import folding
from reattach.log.sqlite.log import SqliteLog
from reattach.records.base import Agent
from reattach.records.database import sqlite_wal
from reattach.records.records import Records
from reattach.testing.conformance.log_samples import append

FILE_BYTES = 1024 * 1024
ROUNDS = 25
TRIES = 100
REST_SECONDS = 0.05
"""Pause between two attempts of a store to free space."""

failures = 0


async def insist(write: Callable[[], Awaitable[object]]) -> None:
    """Retry a call as a run does while its store refuses events."""
    global failures  # noqa: PLW0603  it is said at the end
    for _ in range(TRIES):
        try:
            await write()
        except StoreUnavailableError:
            failures += 1
            await asyncio.sleep(0.02)
        else:
            return
    sys.exit("The store took nothing any more.")


async def write_events(path: str) -> None:
    log = await SqliteLog.open_file(path)
    frame = b"x" * 20_000
    for number in range(ROUNDS):
        run_id = f"run-{number}"
        await insist(lambda: log.open(run_id, Token(1)))  # noqa: B023  called at once
        for seq in range(1, 6):
            await insist(lambda: append(log, run_id, Token(1), seq, [frame]))  # noqa: B023
        await insist(lambda: append(log, run_id, Token(1), 6, [], close=True))  # noqa: B023
        await insist(lambda: log.delete(run_id))  # noqa: B023
    await log.aclose()


async def write_records(path: str) -> None:
    clock = SystemClock()
    records = await Records.open(f"sqlite:///{path}", clock=clock)
    for _ in range(ROUNDS):
        now = clock.now()
        agent = Agent(new_agent_id(), "name", "x" * 50_000, now, now, model="scripted/echo")
        part = TextPart("y" * 50_000)
        system = Message(id=new_message_id(), role=Role.SYSTEM, parts=(part,), created_at=now)

        async def create() -> None:
            await records.agents.create(DEFAULT_TENANT, agent, system_message=system)  # noqa: B023

        async def delete() -> None:
            await records.agents.delete(DEFAULT_TENANT, agent.id)  # noqa: B023

        await insist(create)
        await insist(delete)
    await records.aclose()


def main() -> None:
    store, path = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
    with (
        mock.patch.object(folding, "_RETRY_SECONDS", REST_SECONDS),
        mock.patch.object(sqlite_wal, "_PAUSE_SECONDS", REST_SECONDS),
    ):
        asyncio.run({"events": write_events, "records": write_records}[store](path))
    sys.stdout.write(f"{failures}\n")


if __name__ == "__main__":
    main()
