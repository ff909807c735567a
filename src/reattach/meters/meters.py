"""The meters of one server."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from reattach.meters.instruments import (
    EVENTS,
    OTHER,
    RUN_SECONDS,
    Counters,
    Histogram,
    Histograms,
    Labels,
)

Values = list[tuple[Labels, Any]]
"""The values of one metric by labels: a number, or the counts of the buckets and the sum."""

Snapshot = dict[str, Values]
"""The values of all metrics of one worker, by name; it can be sent as JSON."""

Source = Callable[[], Iterable[tuple[Labels, float]]]
"""Reads the present values of a metric."""


class StoreMeter:
    """Measures the operations of one store. Use it in the event loop."""

    __slots__ = ("_errors", "_seconds", "_store")

    def __init__(self, store: str, seconds: Histograms, errors: Counters) -> None:
        self._store = store
        self._seconds = seconds
        self._errors = errors

    def operation(self, name: str) -> Histogram:
        """Return the histogram of an operation, in seconds."""
        return self._seconds.of(self._store, name)

    def failed(self, operation: str) -> None:
        """Count an operation that the store did not answer."""
        self._errors.add(self._store, operation)


class Meters:
    """Everything that one server counts about itself.

    The parts of the server count here, in the event loop. Figures that exist elsewhere, such as the
    number of open runs, are read by a source when somebody asks. With ``enabled`` false
    nothing is measured that costs time, and there is nothing to read.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.events = 0
        self.sent_bytes = 0
        """Bytes sent over connections that are closed; a source adds those of the open ones."""
        self.runs_ended = Counters()
        self.time_to_first_event = Histograms(RUN_SECONDS)
        self.run_duration = Histograms(RUN_SECONDS)
        self.takeovers = Counters("continued", "ended")
        self.continuations = Counters()
        self.resumes = Counters("start", "middle", "end", "snapshot", "ahead", "gone")
        self.resume_events = Histogram(EVENTS)
        self.readers_cut = Counters()
        self.delivery_lag = Histogram()
        self.refused = Counters(
            "requests", "runs", "streams", "bodies", "memory", "connections", "draining"
        )
        self.callbacks = Counters("delivered", "failed", "given_up")
        self.store_seconds = Histograms()
        self.store_errors = Counters()
        self.event_loop_lag = Histogram()
        self.latest_event_loop_lag_seconds = 0.0
        self.model_names: Callable[[], Iterable[str]] = tuple
        """Returns the models that may be label values; all others are ``other``."""
        self._models: set[str] = set()
        """Models that were label values before, because making the whole list takes time."""
        self._sources: dict[str, Source] = {}
        self._blocking_sources: dict[str, Source] = {}

    def store(self, name: str) -> StoreMeter:
        return StoreMeter(name, self.store_seconds, self.store_errors)

    def model_label(self, handle: str | None) -> str:
        """Return the label value for a model: clients may name models without a bound."""
        if handle in self._models:
            return handle
        if handle is None or handle not in self.model_names():
            return OTHER
        self._models.add(handle)
        return handle

    def add_source(self, name: str, source: Source) -> None:
        """Read the metric ``name`` from ``source``, in the event loop."""
        self._sources[name] = source

    def add_blocking_source(self, name: str, source: Source) -> None:
        """Read the metric ``name`` from ``source``, in a thread; OSError leaves it out."""
        self._blocking_sources[name] = source

    def snapshot(self) -> Snapshot:
        """Return the present values of all metrics that are read in the event loop."""
        found: Snapshot = {
            "reattach_events_total": [((), self.events)],
            "reattach_runs_ended_total": list(self.runs_ended.items()),
            "reattach_takeovers_total": list(self.takeovers.items()),
            "reattach_continuations_total": list(self.continuations.items()),
            "reattach_resumes_total": list(self.resumes.items()),
            "reattach_readers_cut_total": list(self.readers_cut.items()),
            "reattach_refused_total": list(self.refused.items()),
            "reattach_callbacks_total": list(self.callbacks.items()),
            "reattach_store_errors_total": list(self.store_errors.items()),
        }
        for name, histograms in (
            ("reattach_run_time_to_first_event_seconds", self.time_to_first_event),
            ("reattach_run_duration_seconds", self.run_duration),
            ("reattach_store_seconds", self.store_seconds),
        ):
            found[name] = [(labels, _values_of(one)) for labels, one in histograms.items()]
        for name, histogram in (
            ("reattach_resume_events", self.resume_events),
            ("reattach_delivery_lag_seconds", self.delivery_lag),
            ("reattach_event_loop_lag_seconds", self.event_loop_lag),
        ):
            found[name] = [((), _values_of(histogram))]
        for name, source in self._sources.items():
            found[name] = list(source())
        return found

    def blocking_snapshot(self) -> Snapshot:
        """Return the values that only blocking calls give. Call it in a thread."""
        found: Snapshot = {}
        for name, source in self._blocking_sources.items():
            with suppress(OSError):
                found[name] = list(source())
        return found


def _values_of(histogram: Histogram) -> tuple[list[int], float]:
    return list(histogram.counts), histogram.sum
