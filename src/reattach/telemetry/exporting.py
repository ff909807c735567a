"""The export of spans: the SDK's own parts, counted, with a queue that never blocks a run."""

import threading
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Final

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from reattach.domain.errors import StartupError
from reattach.telemetry.traces import SpanCounts

logger = structlog.get_logger(__name__)

_GROUP: Final = "opentelemetry_traces_exporter"
"""The entry points under which packages offer exporters."""

_WARNING_SECONDS: Final = 60.0
"""The least time between two warnings about spans that are lost."""


def load_exporter(name: str, protocol: str | None) -> SpanExporter:
    """Return the exporter of a name in ``OTEL_TRACES_EXPORTER``; ``protocol`` is that of OTLP.

    Raises:
        StartupError: No installed package offers it.
    """
    if name == "otlp":
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    offered = {one.name: one for one in entry_points(group=_GROUP)}
    if name not in offered:
        raise StartupError(
            f"No installed package offers the exporter {name!r} of traces.",
            remedy=f"Set OTEL_TRACES_EXPORTER to one of {', '.join(sorted(offered))}, or to none."
            + (" Or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf." if "grpc" in name else ""),
        )
    exporter: SpanExporter = offered[name].load()()
    return exporter


class _Counting(SpanExporter):
    """Counts the spans that ``exporter`` takes and those that it gives up. Runs in a thread."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts
        self.done = 0
        """The number of spans that left the queue."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self._counts.exported += len(spans)
            else:
                self._counts.failed += len(spans)
            self.done += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class BoundedProcessor(SpanProcessor):
    """Queues ended spans for the exporter, up to ``most``, and drops and counts the rest.

    The SDK's own queue drops too, but does not say how many.
    """

    def __init__(self, exporter: SpanExporter, counts: SpanCounts, *, most: int) -> None:
        self._counts = counts
        self._most = most
        self._exporter = _Counting(exporter, counts)
        self._batches = BatchSpanProcessor(self._exporter)
        self._queued = 0
        self._lock = threading.Lock()  # Tools may end spans in threads.
        self._warned_at_seconds = -_WARNING_SECONDS

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            self._counts.ended += 1
            is_full = self._queued - self._exporter.done >= self._most
            if is_full:
                self._counts.dropped += 1
            else:
                self._queued += 1
        if is_full:
            self._warn()
        else:
            self._batches.on_end(span)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at_seconds >= _WARNING_SECONDS:
            self._warned_at_seconds = now
            logger.warning(
                "spans dropped",
                dropped=self._counts.dropped,
                failed=self._counts.failed,
                exported=self._counts.exported,
                remedy="The collector is too slow or does not answer. Raise "
                "OTEL_BSP_MAX_QUEUE_SIZE, or trace fewer runs with OTEL_TRACES_SAMPLER.",
            )

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # an untyped method of the SDK

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)
