"""Traces by OpenTelemetry: spans of sends, of resumes, and of the attempts at runs.

A span reaches a collector only when it has ended, and dies with its process. So no span is as long
as a run. The trace of a run begins with the span of its send, which ends with the head of the
response or soon after the run began, and its context is kept in the run's row. Each attempt is a
span below that, whose id follows from the run and the attempt's number. So a later process can
report the attempt of one that died, as the parent of the spans that the dead process had exported.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanKind
from typing_extensions import override

from reattach import __version__
from reattach.daemon_thread import in_daemon_thread
from reattach.telemetry import conventions as names
from reattach.telemetry.contexts import (
    SpanIds,
    context_of_headers,
    log_fields,
    span_context_of,
    traceparent_of,
)
from reattach.telemetry.exporting import BoundedProcessor, load_exporter
from reattach.telemetry.run_spans import RunSpans
from reattach.telemetry.sends import OpenSend, set_answer
from reattach.telemetry.traces import Answer, SendSpan, SpanCounts, TracedRequest, Traces

logger = structlog.get_logger(__name__)

FLUSH_SECONDS: Final = 5.0
"""How long a process that stops waits for the collector to take its last spans."""

_MAX_LINKS: Final = 100
"""The most runs that one request follows."""


class SpanTraces(Traces):
    """Traces that go to the exporters of ``provider``.

    ``ids`` are the provider's, if it is Reattach's own; it is then shut down by ``aclose``.
    """

    is_on = True

    def __init__(
        self,
        provider: TracerProvider,
        *,
        ids: SpanIds | None = None,
        counts: SpanCounts | None = None,
        with_content: bool = False,
    ) -> None:
        super().__init__()
        self.counts = counts or self.counts
        self._provider = provider
        self._is_own = ids is not None
        self._tracer = provider.get_tracer(
            names.SCOPE_NAME, __version__, schema_url=names.SCHEMA_URL
        )
        self._runs = RunSpans(self._tracer, ids, with_content=with_content)
        self.observer = self._runs

    @classmethod
    def exporting(
        cls,
        exporters: Sequence[str],
        *,
        resource: Resource,
        protocol: str | None,
        queue_spans: int,
        with_content: bool,
    ) -> Self:
        """Return traces with a provider of their own.

        Raises:
            StartupError: An exporter is not installed.
        """
        ids, counts = SpanIds(), SpanCounts()
        provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        for name in exporters:
            exporter = load_exporter(name, protocol)
            provider.add_span_processor(BoundedProcessor(exporter, counts, most=queue_spans))
        return cls(provider, ids=ids, counts=counts, with_content=with_content)

    @override
    @contextmanager
    def sending(self, request: TracedRequest) -> Iterator[SendSpan]:
        current = trace.get_current_span().get_span_context()
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            # An application that traces its requests has read the headers already.
            None if current.is_valid else context_of_headers(request.headers),
            SpanKind.SERVER,
            _attributes(request),
            start_time=request.began_ns,
        )
        sending = OpenSend(span)
        traceparent = traceparent_of(span.get_span_context())
        self._runs.sends[traceparent] = sending
        try:
            with (
                trace.use_span(span, record_exception=False, set_status_on_exception=False),
                structlog.contextvars.bound_contextvars(**log_fields(span)),
            ):
                yield sending
        except BaseException as error:
            sending.end(Answer(None, error=error))
            raise
        finally:
            self._runs.sends.pop(traceparent, None)
            sending.close()

    @override
    def resumed(self, request: TracedRequest, answer: Answer) -> None:
        current = trace.get_current_span().get_span_context()
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            None if current.is_valid else context_of_headers(request.headers),
            SpanKind.SERVER,
            _attributes(request),
            [Link(span_context_of(one)) for one in answer.traceparents[:_MAX_LINKS]],
            start_time=request.began_ns,
        )
        set_answer(span, answer)
        span.end()

    @override
    def install_globally(self) -> None:
        if self._is_own and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._provider)

    @override
    async def aclose(self) -> None:
        for send in self._runs.sends.values():
            send.close()
        if not self._is_own:
            return
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await in_daemon_thread(self._provider.shutdown, name="traces")
        except TimeoutError:
            logger.warning("last spans not exported", seconds=FLUSH_SECONDS)
        counts = self.counts
        if counts.ended:
            logger.info(
                "traces ended",
                exported=counts.exported,
                failed=counts.failed,
                dropped=counts.dropped,
            )


def _attributes(request: TracedRequest) -> dict[str, Any]:
    return {
        names.HTTP_METHOD: request.method,
        names.HTTP_ROUTE: request.route,
        names.URL_PATH: request.path,
        names.URL_SCHEME: request.scheme,
    }
