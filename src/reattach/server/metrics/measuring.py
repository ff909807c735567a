"""Figures that exist anyway and are read when somebody asks, and the lag of the event loop."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, Final

from reattach import __version__
from reattach.domain.events import RunStatus
from reattach.http.context import Context
from reattach.meters.instruments import Labels
from reattach.meters.meters import Meters
from reattach.runs.following.follow import Following
from reattach.runs.following.lag import LagMeter
from reattach.runs.following.readers import CutReason, Transport
from reattach.runs.reports.report import StoreOperation, StoreReport
from reattach.runs.service import RunService
from reattach.settings import Settings
from reattach.telemetry.traces import SpanCounts

LOOK_SECONDS: Final = 0.5
"""The interval of the timer whose delay is the lag of the event loop."""


def measure(context: Context) -> Coroutine[Any, Any, None]:
    """Let the meters of a server read its figures, and return the work that measures its loop."""
    process = context.reports.process
    process.stores = partial(_store_reports, context)
    if context.settings.workers > 1:
        process.worker = context.worker
    if context.meters.enabled:
        process.event_loop_lag_seconds = lambda: context.meters.latest_event_loop_lag_seconds
        _add_sources(context)
    return _measure_event_loop(context.meters)


async def _measure_event_loop(meters: Meters) -> None:
    while meters.enabled:
        due_at = time.monotonic() + LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)
        lag_seconds = max(time.monotonic() - due_at, 0.0)
        meters.event_loop_lag.observe(lag_seconds)
        meters.latest_event_loop_lag_seconds = lag_seconds


def _add_sources(context: Context) -> None:
    """Let the meters read those figures of the parts that are counted there."""
    settings, runs, meters = context.settings, context.runs, context.meters
    meters.readers_cut.show(*(reason.value for reason in CutReason))
    runs.readers.on_cut(lambda cut: meters.readers_cut.add(cut.reason.value))
    runs.readers.measure_lag(partial(_lag_of, runs, meters))

    def build() -> Iterable[tuple[Labels, float]]:
        yield (__version__, _stores(context)), 1

    def open_runs() -> Iterable[tuple[Labels, float]]:
        found = Counter(driver.run.status for driver in runs.open_runs.drivers.values())
        return [((status.value,), found[status]) for status in RunStatus if status.is_active]

    def readers() -> Iterable[tuple[Labels, float]]:
        found = runs.readers.by_transport()
        return [((transport.value,), found[transport]) for transport in Transport]

    def lease_margin() -> Iterable[tuple[Labels, float]]:
        margin_seconds = runs.ownership.margin_seconds
        return [] if margin_seconds is None else [((), margin_seconds)]

    meters.add_source("reattach_build_info", build)
    meters.add_source("reattach_runs", open_runs)
    meters.add_source("reattach_readers", readers)
    meters.add_source("reattach_readers_queued", lambda: [((), runs.log.queued_listeners)])
    meters.add_source("reattach_lease_margin_seconds", lease_margin)
    if context.traces.is_on:
        meters.add_source("reattach_spans_total", partial(_spans, context.traces.counts))
    if settings.stores is None:
        disk = partial(_free_space, settings)
        meters.add_blocking_source("reattach_data_free_bytes", disk)


def _spans(counts: SpanCounts) -> Iterable[tuple[Labels, float]]:
    yield ("exported",), counts.exported
    yield ("failed",), counts.failed
    yield ("dropped",), counts.dropped


def _lag_of(runs: RunService, meters: Meters, following: Following) -> LagMeter | None:
    """Return the meter of a reader; None if another process drives its run."""
    driver = runs.open_runs.drivers.get(following.run_id)
    writer = None if driver is None else driver.writer
    if writer is None:
        return None
    return LagMeter(writer.keep_put_times(), meters.delivery_lag, following.last_seq)


def _backends(context: Context) -> tuple[str, str]:
    """Return the kinds of the records and of the log."""
    return context.records.backend, "sqlite" if context.settings.log_url is None else "redis"


def _stores(context: Context) -> str:
    return "+".join(_backends(context))


def _store_reports(context: Context) -> list[StoreReport]:
    """Return the operations of each store with their latencies since the start."""
    timed = list(context.meters.store_seconds.items())
    return [
        StoreReport(
            store,
            backend,
            tuple(
                StoreOperation(operation, one.count, one.quantile(0.5), one.quantile(0.99))
                for (of, operation), one in timed
                if of == store
            ),
        )
        for store, backend in zip(("records", "log"), _backends(context), strict=True)
    ]


def _free_space(settings: Settings) -> Iterable[tuple[Labels, float]]:
    """Return the bytes that this user may still write. Raises OSError."""
    found = os.statvfs(settings.data_dir)
    return [((), found.f_bavail * found.f_frsize)]
