"""The schedule of events: one timer for all runs of a server, and a common start.

Engines and yardsticks share it, so that a comparison does not compare their timers.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TICK_NS = 1_000_000
_LOOK_SECONDS = 0.02

Due = Callable[[], None]


class Ticker:
    """Calls due functions with a resolution of a millisecond. Idle while nothing is scheduled."""

    def __init__(self) -> None:
        self._due: defaultdict[int, list[Due]] = defaultdict(list)
        self._ticking = False
        self._last_tick = 0

    def at(self, due_ns: int, call: Due) -> None:
        """Schedule ``call`` for the time ``due_ns`` of the monotonic clock."""
        tick = -(-due_ns // TICK_NS)
        if not self._ticking:
            self._ticking = True
            self._last_tick = time.monotonic_ns() // TICK_NS - 1
            asyncio.get_running_loop().call_soon(self._tick)
        self._due[max(tick, self._last_tick + 1)].append(call)

    async def until(self, due_ns: int) -> None:
        """Sleep until the time ``due_ns`` of the monotonic clock."""
        if time.monotonic_ns() >= due_ns:
            return
        reached = asyncio.get_running_loop().create_future()

        def reach() -> None:
            if not reached.done():
                reached.set_result(None)

        self.at(due_ns, reach)
        await reached

    def _tick(self) -> None:
        now = time.monotonic_ns() // TICK_NS
        for tick in range(self._last_tick + 1, now + 1):
            self._last_tick = tick
            for call in self._due.pop(tick, ()):
                call()
        if self._due:
            asyncio.get_running_loop().call_later(TICK_NS / 1e9, self._tick)
        else:
            self._ticking = False


class Gates:
    """Files that hold the start time of runs by the monotonic clock."""

    def __init__(self) -> None:
        self._opening: dict[str, asyncio.Task[int]] = {}

    async def start_ns(self, path: str) -> int:
        """Wait until the gate opens, and return the start time of its runs."""
        if path not in self._opening:
            self._opening[path] = asyncio.create_task(self._opened(Path(path)))
        return await asyncio.shield(self._opening[path])

    async def _opened(self, path: Path) -> int:
        while True:
            with suppress(FileNotFoundError, ValueError):
                return int(path.read_text())
            await asyncio.sleep(_LOOK_SECONDS)


def open_gate(path: Path, start_ns: int) -> None:
    """Write the start time of the gate's runs atomically."""
    new = path.with_suffix(".new")
    new.write_text(str(start_ns))
    new.rename(path)
