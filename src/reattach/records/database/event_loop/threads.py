"""Threads that make transactions for the event loop."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from reattach.futures import settle

_T = TypeVar("_T")

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """As many threads as there were ever calls at once. For one event loop.

    asyncio's executors spend more on handing a call over than SQLite on a short transaction.
    """

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0

    @property
    def running(self) -> int:
        """The calls that have not ended."""
        return self._running

    def call(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Call ``work`` in a thread; the future gets its result, or its exception."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._note_end)
        self._running += 1
        if self._running > len(self._threads):
            thread = threading.Thread(
                target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._jobs.put((work, future))
        return future

    def join(self) -> None:
        """Wait until every call has ended. There must be no further one."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _note_end(self, _: "asyncio.Future[Any]") -> None:
        self._running -= 1

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001  the caller raises it
                result, error = None, raised
            with suppress(RuntimeError):  # The loop is closed.
                future.get_loop().call_soon_threadsafe(settle, future, result, error)
            del work, future, job, result, error  # The next wait may be long.
