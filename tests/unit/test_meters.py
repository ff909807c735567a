"""Counters and histograms, and their form for Prometheus."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.meters.exposition import expose
from reattach.meters.families import FAMILIES
from reattach.meters.instruments import (
    MOST_LABELS,
    OTHER,
    SECONDS,
    Counters,
    Histogram,
    Histograms,
)
from reattach.meters.meters import Meters
from tests.support.scraped import Scraped, parse


@given(st.lists(st.floats(0, 20, allow_nan=False), min_size=1))
def test_a_histogram_counts_each_value_once_up_to_the_bounds_that_contain_it(
    values: list[float],
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    meters = Meters()
    meters.event_loop_lag = histogram
    found = exposed(meters)
    name = "reattach_event_loop_lag_seconds"
    for bound in SECONDS:
        expected = sum(value <= bound for value in values)
        assert found.value(f"{name}_bucket", le=str(bound)) == expected
    assert found.value(f"{name}_bucket", le="+Inf") == len(values)
    assert found.value(f"{name}_count") == len(values)
    assert found.value(f"{name}_sum") == pytest.approx(sum(values))


@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_estimates(
    values: list[float], share: float
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    rank = max(int(-(-share * len(values) // 1)), 1)
    exact = sorted(values)[rank - 1]
    estimate = histogram.quantile(share)
    assert estimate is not None
    lower, upper = next(
        (low, high) for low, high in pairwise((0.0, *SECONDS)) if low <= exact <= high
    )
    assert lower - 1e-9 <= estimate <= upper + 1e-9


def test_a_histogram_without_values_has_no_quantile_and_one_beyond_its_bounds_the_last() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.observe(1_000)
    assert histogram.quantile(0.5) == SECONDS[-1]


def test_labels_beyond_the_bound_are_counted_together_as_other() -> None:
    counters, histograms = Counters(), Histograms()
    for number in range(MOST_LABELS + 10):
        counters.add(f"model-{number}", "completed")
        histograms.of(f"model-{number}").observe(1)
    counters.add("model-0", "completed")
    assert counters.value("model-0", "completed") == 2
    assert counters.value(OTHER, OTHER) == 10
    assert len(list(counters.items())) == len(list(histograms.items())) == MOST_LABELS + 1
    assert histograms.of("model-new").count == 10


def test_a_model_that_was_once_offered_keeps_its_label() -> None:
    meters = Meters()
    offered = ["openai/gpt"]
    meters.model_names = lambda: offered
    assert meters.model_label("openai/gpt") == "openai/gpt"
    offered.clear()
    assert meters.model_label("openai/gpt") == "openai/gpt"
    assert meters.model_label("openai/never") == OTHER


def exposed(*workers: Meters) -> Scraped:
    """Expose the figures of workers as a supervisor gets them."""
    snapshots = {
        str(slot): json.loads(json.dumps(one.snapshot())) for slot, one in enumerate(workers)
    }
    return parse(expose(snapshots).body.decode())


def test_each_worker_has_its_own_time_series() -> None:
    first, second = Meters(), Meters()
    first.events, second.events = 3, 4
    first.runs_ended.add("completed", 'a "quoted"\nmodel')
    found = exposed(first, second)
    assert found.workers("reattach_events_total") == {"0": 3, "1": 4}
    model = 'a "quoted"\nmodel'
    assert found.value("reattach_runs_ended_total", model=model, worker="0") == 1
    assert found.value("reattach_runs_ended_total", worker="1") == 0


def test_a_snapshot_has_only_known_metrics() -> None:
    assert set(Meters().snapshot()) <= set(FAMILIES)


def test_a_source_that_cannot_be_read_leaves_its_metric_out() -> None:
    meters = Meters()

    def fail() -> list[tuple[tuple[str, ...], float]]:
        raise OSError("no such directory")

    meters.add_blocking_source("reattach_data_free_bytes", fail)
    assert meters.blocking_snapshot() == {}
