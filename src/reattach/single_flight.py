"""One piece of work for all who ask for it while it goes on."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_T = TypeVar("_T")


class SingleFlight(Generic[_K, _T]):
    """Work by its key, each in a task of its own that no caller's cancellation ends.

    What it raises is raised to all who wait. Nothing is remembered: who asks when it has ended
    begins it anew.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[_K, asyncio.Task[_T]] = {}

    async def do(self, key: _K, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What ``work`` returns, or what that returns which goes on for the key."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work(), name=self._name)
            task.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(task)

    def _forget(self, key: _K, task: "asyncio.Task[_T]") -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # Those who asked may have gone.
