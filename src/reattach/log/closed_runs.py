"""A cache of closed runs in memory, in front of the store that has them."""

from collections import OrderedDict
from typing import Final, Generic, Protocol, TypeVar

from reattach.log.tail import Tail

RUN_BYTES: Final = 1024
"""The approximate memory of a run without its frames."""

LOAD_BYTES: Final = 4 * 1024 * 1024
"""A closed log up to this size is loaded whole for all readers to share, once a second one reads it
from the store. Each reader of a larger log reads its own slices."""


class ClosedRun(Protocol):
    """A closed run in memory."""

    followers: int
    tail: Tail


Run = TypeVar("Run", bound=ClosedRun)


class ClosedRuns(Generic[Run]):
    """The most recently used closed runs, up to ``max_bytes`` in total."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._costs: OrderedDict[Run, int] = OrderedDict()

    def __contains__(self, run: Run) -> bool:
        return run in self._costs

    def add(self, run: Run) -> None:
        """Add a run, or note its new size."""
        self.discard(run)
        cost_bytes = self._costs[run] = run.tail.size_bytes + RUN_BYTES
        self._bytes += cost_bytes

    def discard(self, run: Run) -> None:
        """Remove a run that changed or was deleted; no-op if it is not there."""
        self._bytes -= self._costs.pop(run, 0)

    def touch(self, run: Run) -> None:
        if run in self._costs:
            self._costs.move_to_end(run)

    def has_room(self, more_bytes: int) -> bool:
        """Return whether frames of this size may be added to runs here."""
        return self._bytes + more_bytes <= self._max_bytes

    def evict(self, more_bytes: int = 0) -> list[Run]:
        """Remove and return the least recently used runs, until there is room for ``more_bytes``.

        Runs with followers stay.
        """
        evicted: list[Run] = []
        excess_bytes = self._bytes + more_bytes - self._max_bytes
        for run, cost_bytes in self._costs.items():
            if excess_bytes <= 0:
                break
            if run.followers == 0:
                evicted.append(run)
                excess_bytes -= cost_bytes
        for run in evicted:
            self.discard(run)
        return evicted
