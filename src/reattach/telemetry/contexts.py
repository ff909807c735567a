"""Trace contexts: between headers, rows, spans and log lines."""

import hashlib
from collections.abc import Sequence
from typing import Final

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C: Final = TraceContextTextMapPropagator()
_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})


class SpanIds(RandomIdGenerator):
    """Random ids, except for the one span that is started next after ``following`` was set."""

    following: int | None = None

    def generate_span_id(self) -> int:
        following, self.following = self.following, None
        return super().generate_span_id() if following is None else following


def attempt_span_id(run_id: str, number: int) -> int:
    """Return the id of the span of an attempt, the same in every process."""
    digest = hashlib.sha256(f"{run_id}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def context_of_headers(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """Return the context that a request names. A malformed one is ignored."""
    named = {name.decode(): value.decode("latin-1") for name, value in headers if name in _HEADERS}
    return _W3C.extract(named, Context())


def context_of(traceparent: str | None) -> Context:
    """Return the context of a row; without one, a context that begins a new trace."""
    return (
        Context() if traceparent is None else _W3C.extract({"traceparent": traceparent}, Context())
    )


def span_context_of(traceparent: str) -> SpanContext:
    return trace.get_current_span(context_of(traceparent)).get_span_context()


def traceparent_of(span: SpanContext) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"


def log_fields(span: Span) -> dict[str, str]:
    """Return the values that log lines have while the span is current."""
    current = span.get_span_context()
    return {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}"}


def enter(span: Span) -> Context:
    """Make the span the current one of this task, for spans of libraries and for log lines.

    The task, or the calling function, restores the context that was current before.
    """
    context = trace.set_span_in_context(span)
    reenter(context)
    return context


def reenter(context: Context) -> None:
    """Make a context current that ``enter`` returned."""
    otel_context.attach(context)
    structlog.contextvars.bind_contextvars(**log_fields(trace.get_current_span(context)))
