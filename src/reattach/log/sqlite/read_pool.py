"""Connections that read the SQLite log beside the one that writes it."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

T = TypeVar("T")

_THREADS: Final = 2
"""Reads of 64 KiB take a third of a millisecond; two of them keep a slow one from blocking all."""


class ReadPool:
    """A few threads with a connection each, made when first needed."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reattach-log-reader")

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns or raises. Cancelled, it ends unheard."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, work)

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = self._connect()
        try:
            return work(connection)
        finally:
            self._idle.put(connection)

    def _close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()
