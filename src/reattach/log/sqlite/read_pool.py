"""Connections to the SQLite log beside that of the writer's thread."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from reattach.slow_disk import SlowDisk

T = TypeVar("T")

_THREADS: Final = 2
"""A read of 64 KiB takes a third of a millisecond. With two threads a slow one does not block."""

_SLOW_SECONDS: Final = 0.005
"""A slice takes 30 µs where the system has the file in memory. A read that takes longer than this
was held up by the disk."""


class ReadPool:
    """A small pool of threads, each with a connection that is opened on first use.

    ``loop_connection`` is that of the event loop. It never waits for a lock, and raises
    sqlite3.Error instead.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        """For a thread that may block: it opens the connection for ``try_at_once``."""
        self._connect = connect
        self.loop_connection = connect()
        self.loop_connection.execute("PRAGMA busy_timeout = 0")
        self._disk = SlowDisk()
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reattach-log-reader")

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a thread and return its result.

        If the caller is cancelled, ``work`` still runs and its result is dropped.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work``, which needs no connection, in a thread as ``call`` does."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def try_at_once(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T] | None:
        """Run ``work`` in the event loop, and return its result in a tuple.

        For work that finds a row by its key or reads a slice, where a thread costs more. None if it
        has to wait for a lock, or if the disk held up such work a moment ago.
        """
        began = self._disk.begin()
        if began is None:
            return None
        try:
            result = work(self.loop_connection)
        except sqlite3.Error:  # A thread may wait for a lock, and reports what is wrong.
            return None
        finally:
            self._disk.note(began, _SLOW_SECONDS)
        return (result,)

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
        self.loop_connection.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()
