"""Which closed runs stay in memory though the store has them."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Closed(Protocol):
    """A closed run in memory."""

    followers: int

    @property
    def cost_bytes(self) -> int:
        """What it takes of memory, frames and all."""


Run = TypeVar("Run", bound=Closed)


class ClosedRuns(Generic[Run]):
    """The latest used ones, up to ``max_bytes`` in all."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._costs: OrderedDict[Run, int] = OrderedDict()

    def add(self, run: Run) -> None:
        self.discard(run)
        self._costs[run] = run.cost_bytes
        self._bytes += run.cost_bytes

    def discard(self, run: Run) -> None:
        """Keep it no longer here: it has changed or is gone."""
        self._bytes -= self._costs.pop(run, 0)

    def touch(self, run: Run) -> None:
        if run in self._costs:
            self._costs.move_to_end(run)

    def evict(self) -> list[Run]:
        """Take out what is too much, the longest unused first. A run with followers stays."""
        evicted: list[Run] = []
        too_much = self._bytes - self._max_bytes
        for run, cost_bytes in self._costs.items():
            if too_much <= 0:
                break
            if run.followers == 0:
                evicted.append(run)
                too_much -= cost_bytes
        for run in evicted:
            self.discard(run)
        return evicted
