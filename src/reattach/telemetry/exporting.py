"""The export of spans: the SDK's own parts, counted, with a queue that never blocks a run."""

import logging
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

_GRPC: Final = "otlp_proto_grpc"

_WARNING_SECONDS: Final = 60.0
"""The least time between two warnings of one kind about spans that are lost."""

_MAX_REASON_CHARS: Final = 300

_DROPPED_REMEDY: Final = (
    "The collector is too slow or does not answer. Raise OTEL_BSP_MAX_QUEUE_SIZE, or trace fewer "
    "runs with OTEL_TRACES_SAMPLER."
)
_FAILED_REMEDY: Final = "`reattach doctor` says whether the collector takes spans."

_SDK_LOGGER: Final = logging.getLogger("opentelemetry")


def load_exporter(name: str, protocol: str | None) -> SpanExporter:
    """Return the exporter of a name in ``OTEL_TRACES_EXPORTER``; ``protocol`` is that of OTLP.

    Raises:
        StartupError: No installed package offers it.
    """
    if name == "otlp":
        name = _GRPC if protocol == "grpc" else "otlp_proto_http"
    offered = {one.name: one for one in entry_points(group=_GROUP)}
    if name not in offered:
        remedy = f"Set OTEL_TRACES_EXPORTER to one of {', '.join(sorted(offered))}, or to none."
        if name == _GRPC:
            remedy = (
                "Install `opentelemetry-exporter-otlp-proto-grpc` for the Python of the server, or "
                "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf."
            )
        raise StartupError(
            f"No installed package offers the exporter {name!r} of traces.", remedy=remedy
        )
    exporter: SpanExporter = offered[name].load()()
    return exporter


class _Reasons(logging.Handler):
    """Takes the log lines of the SDK, which has one for every retry, and keeps the first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._first = self._first or record.getMessage()[:_MAX_REASON_CHARS]

    def take(self) -> str | None:
        """Return the first line since the last call."""
        first, self._first = self._first, None
        return first


class _Warning:
    """A log line that appears once in ``_WARNING_SECONDS`` at most."""

    def __init__(self, event: str, counts: SpanCounts, remedy: str) -> None:
        self._event = event
        self._counts = counts
        self._remedy = remedy
        self._logged_at_seconds = -_WARNING_SECONDS

    def log(self, reason: str | None = None) -> None:
        now = time.monotonic()
        if now - self._logged_at_seconds < _WARNING_SECONDS:
            return
        self._logged_at_seconds = now
        logger.warning(
            self._event,
            dropped=self._counts.dropped,
            failed=self._counts.failed,
            exported=self._counts.exported,
            reason=reason,
            remedy=self._remedy,
        )


class _Counting(SpanExporter):
    """Counts the spans that ``exporter`` takes and those that it gives up. Runs in a thread."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts
        self._reasons = _Reasons()
        self._failed = _Warning("spans not exported", counts, _FAILED_REMEDY)
        self.done = 0
        """The number of spans that left the queue."""
        _SDK_LOGGER.addHandler(self._reasons)
        _SDK_LOGGER.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            reason = self._reasons.take()
            if result is SpanExportResult.SUCCESS:
                self._counts.exported += len(spans)
            else:
                self._counts.failed += len(spans)
                self._failed.log(reason)
            self.done += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
        _SDK_LOGGER.removeHandler(self._reasons)
        _SDK_LOGGER.propagate = True

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
        self._dropped = _Warning("spans dropped", counts, _DROPPED_REMEDY)

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
            self._dropped.log()
        else:
            self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # an untyped method of the SDK

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)
