"""Counters and histograms over plain integers, without locks.

Use each of them in the event loop of its server only. None is on the path of an event to a reader.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

Labels = tuple[str, ...]
"""The values of a metric's labels, in the order of their names."""

MOST_LABELS: Final = 500
"""The most combinations of label values that one metric keeps; further ones count as ``other``."""

OTHER: Final = "other"

SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Bounds for the latencies of stores, sockets and the event loop."""

RUN_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bounds for the durations of runs."""

EVENTS: Final = (0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
"""Bounds for numbers of events."""


class Histogram:
    """Observed values, counted by upper bounds; a value that equals a bound belongs to it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = array("Q", [0] * (len(bounds) + 1))
        """The values up to each bound and above the one before it; the last ones exceed all."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Estimate the value below which ``share`` (0 to 1) of all observed values lie.

        It is interpolated within the bucket, as ``histogram_quantile`` of Prometheus does. A value
        beyond the last bound is reported as that bound. None if nothing was observed.
        """
        wanted = share * self.count
        if not self.count:
            return None
        below, lower = 0, 0.0
        for count, upper in zip(self.counts, self.bounds, strict=False):
            if count and below + count >= wanted:
                return lower + (upper - lower) * max(wanted - below, 0.0) / count
            below, lower = below + count, upper
        return self.bounds[-1]


class Counters:
    """A counter for each combination of label values."""

    __slots__ = ("_values",)

    def __init__(self, *initial: str | Labels) -> None:
        """``initial`` are label values to show before anything is counted."""
        self._values: dict[Labels, int] = {}
        self.show(*initial)

    def show(self, *initial: str | Labels) -> None:
        """Show counters of 0, because a rate is unknown until a counter is there."""
        for labels in initial:
            self._values.setdefault((labels,) if isinstance(labels, str) else labels, 0)

    def add(self, *labels: str, count: int = 1) -> None:
        labels = _bounded(labels, self._values)
        self._values[labels] = self._values.get(labels, 0) + count

    def value(self, *labels: str) -> int:
        return self._values.get(labels, 0)

    def items(self) -> Iterator[tuple[Labels, int]]:
        return iter(self._values.items())


class Histograms:
    """A histogram for each combination of label values."""

    __slots__ = ("_bounds", "_values")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._values: dict[Labels, Histogram] = {}

    def of(self, *labels: str) -> Histogram:
        """Return the histogram of these values; keep it where observations are frequent."""
        labels = _bounded(labels, self._values)
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = Histogram(self._bounds)
        return found

    def items(self) -> Iterator[tuple[Labels, Histogram]]:
        return iter(self._values.items())


def _bounded(labels: Labels, known: Mapping[Labels, object]) -> Labels:
    return labels if labels in known or len(known) < MOST_LABELS else (OTHER,) * len(labels)
