"""The span of a request that sends messages, which ends soon after its run begins."""

import asyncio
import time
from typing import Any, Final

from opentelemetry.trace import Span, Status, StatusCode
from typing_extensions import override

from reattach.telemetry import conventions as names
from reattach.telemetry.contexts import span_context_of
from reattach.telemetry.traces import Answer, SendSpan

HEAD_SECONDS: Final = 1.0
"""How long the span of a send whose run has begun waits for the head of the response."""


class OpenSend(SendSpan):
    """An open span. It ends with the head of the response, or soon after its run began.

    The head of a stream goes out when the run begins, but a whole answer comes at its end. The root
    of the trace must not wait for an answer that its process may never send.
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began_ns: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def run_began(self, run_id: str) -> None:
        """Note that the request has created the run."""
        self._span.set_attribute(names.RUN_ID, run_id)
        self._began_ns = time.time_ns()
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.close)

    def close(self) -> None:
        """End the span at the time when its run began, unless it has ended or none has begun."""
        if self._timer is not None:
            self._timer.cancel()
        if self._began_ns is not None and self._span.is_recording():
            self._span.end(self._began_ns)

    @override
    def end(self, answer: Answer) -> None:
        if not self._span.is_recording():
            return
        if self._began_ns is None:
            for traceparent in answer.traceparents:
                self._span.add_link(span_context_of(traceparent))
        elif answer.error is not None:  # The request has ended, and its run goes on.
            self.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        set_answer(self._span, answer)
        self._span.end()


def set_answer(span: Span, answer: Answer) -> None:
    """Set the attributes of a response, and its error."""
    values: dict[str, Any] = {}
    if answer.status is not None:
        values[names.HTTP_STATUS] = answer.status
    if len(answer.run_ids) == 1:
        values[names.RUN_ID] = answer.run_ids[0]
    elif answer.run_ids:
        values[names.RUN_IDS] = answer.run_ids
    if answer.cursor is not None:
        values[names.CURSOR] = answer.cursor
    is_failed = answer.error is not None or (answer.status or 0) >= 500
    if is_failed:
        error = answer.error
        values[names.ERROR_TYPE] = str(answer.status) if error is None else type(error).__name__
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(values)
