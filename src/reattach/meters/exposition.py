"""The metrics of all workers of a machine in the forms that Prometheus reads.

``prometheus_client`` is imported by the first scrape, in a thread, because its import takes longer
than the rest of a scrape.
"""

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from reattach.meters.families import FAMILIES, Family
from reattach.meters.meters import Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

WORKER: Final = "worker"
"""The label with the slot of a worker: 0 … n-1. A replacement has the slot of the one before it."""


@dataclass(frozen=True, slots=True)
class Exposition:
    """The body of a scrape's response, and its headers."""

    body: bytes
    headers: Mapping[str, str]


def process_values() -> Snapshot:
    """Return the memory, CPU and open files of this process; empty except on Linux.

    Reads files, so it must not run on the event loop.
    """
    from prometheus_client.process_collector import ProcessCollector

    found: Snapshot = {}
    for metric in ProcessCollector(registry=None).collect():
        for sample in metric.samples:
            if sample.name in FAMILIES:
                found[sample.name] = [((), sample.value)]
    return found


def expose(
    workers: Mapping[str, Snapshot], *, accept: str = "", accept_encoding: str = ""
) -> Exposition:
    """Encode the figures of all workers, by slot, in the form that the headers ask for.

    That is the text form of Prometheus or OpenMetrics. Takes milliseconds, so call it in a thread.
    """
    from prometheus_client.exposition import choose_encoder, gzip_accepted

    encode, content_type = choose_encoder(accept)
    body = encode(cast("Collector", _Collector(workers)))
    headers = {"content-type": content_type, "cache-control": "no-store", "vary": _VARY}
    if gzip_accepted(accept_encoding):
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers["content-encoding"] = "gzip"
    return Exposition(body, headers)


_VARY: Final = "accept, accept-encoding"


class _Collector:
    def __init__(self, workers: Mapping[str, Snapshot]) -> None:
        self._workers = workers

    def collect(self) -> "Iterator[Metric]":
        for name, family in FAMILIES.items():
            yield _metric(name, family, self._workers)


def _metric(name: str, family: Family, workers: Mapping[str, Snapshot]) -> "Metric":
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    labels = (WORKER, *family.labels)
    values = [
        ((worker, *of), value)
        for worker, snapshot in workers.items()
        for of, value in snapshot.get(name, ())
    ]
    match family.kind:
        case "counter":
            counter = CounterMetricFamily(name, family.help, labels=labels)
            for of, value in values:
                counter.add_metric(of, value)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(name, family.help, labels=labels)
            for of, value in values:
                gauge.add_metric(of, value)
            return gauge
        case "histogram":
            histogram = HistogramMetricFamily(name, family.help, labels=labels)
            for of, (counts, total) in values:
                histogram.add_metric(of, list(_buckets(family.bounds, counts)), total)
            return histogram


def _buckets(bounds: Sequence[float], counts: Iterable[int]) -> Iterator[tuple[str, Any]]:
    """Yield the number of values up to each bound, as Prometheus counts them."""
    total = 0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        yield bound, total
