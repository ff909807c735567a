"""Traces as the rest of the server sees them: off, unless ``telemetry.spans`` replaces this."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from reattach.runs.observing.observer import RunObserver


@dataclass(slots=True)
class SpanCounts:
    """Numbers of spans since the start of the process."""

    ended: int = 0
    exported: int = 0
    failed: int = 0
    """Spans that the exporter gave up, because the collector refused them or did not answer."""
    dropped: int = 0
    """Spans that were not queued, because the queue was full."""


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request that gets a span of its own."""

    method: str
    route: str
    """The path with the names of its parameters."""
    path: str
    scheme: str
    headers: Sequence[tuple[bytes, bytes]]
    began_ns: int = field(default_factory=time.time_ns)
    """The time of its arrival, in nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The facts of a response that are known when its head is sent, or that there will be none."""

    status: int | None
    run_ids: Sequence[str] = ()
    cursor: int | None = None
    """The cursor that the client named; else the seq that the stream begins after."""
    traceparents: Sequence[str] = ()
    """Those of the runs that the response streams."""
    error: BaseException | None = None
    """The exception that prevented a response."""


class SendSpan:
    """The span of a send; by default none."""

    def end(self, answer: Answer) -> None:
        """End the span, unless it has ended after its run began."""


class Traces:
    """Traces that are off: every method does nothing."""

    is_on: bool = False
    observer: RunObserver | None = None
    """The observer to give to the runs."""

    def __init__(self) -> None:
        self.counts = SpanCounts()

    def sending(self, request: TracedRequest) -> AbstractContextManager[SendSpan]:  # noqa: ARG002
        """Begin the span of a send, in the trace that its headers name or in a new one.

        A run that is created in the context belongs to that trace.
        """
        return nullcontext(SendSpan())

    def resumed(self, request: TracedRequest, answer: Answer) -> None:
        """Report a request that follows runs, when the head of its response is sent."""

    def install_globally(self) -> None:
        """Let other code of this process, such as tools, export its spans in the same way."""

    async def aclose(self) -> None:
        """Export the spans that are left, within a bound, and stop."""
