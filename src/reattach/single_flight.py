"""Sharing of one piece of work among all callers that ask for it at, or about, the same time."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_T = TypeVar("_T")


class SingleFlight(Generic[_K, _T]):
    """Runs work by key, at most once at a time per key; concurrent callers share the result.

    Each piece of work is a task of its own, which the cancellation of a caller does not cancel. An
    exception is raised to all callers. Results are not cached: a call after the end starts the work
    again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[_K, asyncio.Task[_T]] = {}

    async def do(self, key: _K, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return the result of ``work``, or of the work that is already running for the key."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work(), name=self._name)
            task.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(task)

    def _forget(self, key: _K, task: "asyncio.Task[_T]") -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # Marks it as retrieved: all callers may have been cancelled.


class Recent(Generic[_T]):
    """The result of some work, done when somebody asks and shared for ``fresh_seconds``.

    ``time`` returns monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, _T]],
        *,
        fresh_seconds: float,
        time: Callable[[], float],
    ) -> None:
        self._work = work
        self._fresh_seconds = fresh_seconds
        self._time = time
        self._flights: SingleFlight[None, _T] = SingleFlight(name)
        self._last: tuple[_T, float] | None = None
        """The last result, and when it was there."""

    async def get(self) -> _T:
        """Return the last result, or a new one if it is too old. Raises what the work raises."""
        if self._last is None or self._time() - self._last[1] >= self._fresh_seconds:
            result = await self._flights.do(None, self._work)
            self._last = result, self._time()
        return self._last[0]
