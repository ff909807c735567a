"""The stores on which the logs of this project are tested."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from reattach.log.base import Log
from reattach.log.memory import MemoryLog
from reattach.log.metered import MeteredLog
from reattach.log.redis.log import RedisLog
from reattach.log.sqlite.log import Durability, Sizes, SqliteLog
from reattach.meters.meters import Meters
from reattach.testing.conformance.log import LogStore

SMALL = Sizes(
    chunk_bytes=300,
    step_bytes=700,
    journal_bytes=2000,
    closed_runs_bytes=0,
    checkpoint_bytes=20_000,
    fold_seconds=0.0,
)
"""So small that a few events are folded, spilled, pruned and read from disk."""

LOADING = replace(SMALL, closed_runs_bytes=6000)
"""The same with memory for some closed runs, into which they are loaded from disk again."""


class MemoryStore(LogStore):
    async def open_log(self) -> Log:
        return MemoryLog()


class MeteredStore(LogStore):
    """A log whose operations are measured."""

    async def open_log(self) -> Log:
        return MeteredLog(MemoryLog(), Meters())


class SqliteStore(LogStore):
    """A file in a directory of its own; after a crash, its copy in another one."""

    def __init__(
        self, directory: Path, durability: Durability = "process", sizes: Sizes | None = None
    ) -> None:
        self._directory = directory
        self._durability: Durability = durability
        self._sizes = sizes
        self._lives = 0

    @property
    def path(self) -> Path:
        return self._directory / f"life-{self._lives}" / "log.db"

    async def open_log(self) -> Log:
        await asyncio.to_thread(self.path.parent.mkdir, parents=True, exist_ok=True)
        return await SqliteLog.open_file(self.path, durability=self._durability, sizes=self._sizes)

    async def crash(self, log: Log) -> None:
        await asyncio.to_thread(self._copy)
        await log.aclose()
        self._lives += 1

    def _copy(self) -> None:
        """Copy the files as they are between two commits, as a killed process leaves them."""
        target = self._directory / f"life-{self._lives + 1}"
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            shutil.copytree(self.path.parent, target, ignore=shutil.ignore_patterns("*-shm"))


class RedisStore(LogStore):
    """Names of its own on a Redis that other tests use, too."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._prefix = f"test-{uuid.uuid4().hex}"

    async def open_log(self) -> Log:
        return await RedisLog.connect(self._url, prefix=self._prefix)
