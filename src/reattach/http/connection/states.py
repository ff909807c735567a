"""The states of a connection, and the rules that hold in each of them.

    HEAD      Waiting for a request's head, on a new connection or after the head's first byte.
    BODY      The head is complete, the request's body is not. The application may be answering.
    RESPONSE  The request is complete; the response ends when the application ends it.
    DETACHED  Like RESPONSE, but the application has returned and other code writes the stream.
    IDLE      Between requests: the last response is complete, and no next request has started.
    DRAINING  Nothing more is written. Input is discarded, so that the client reads the response:
              closing a socket with unread bytes resets it (RFC 9112, section 9.6).
    CLOSED    The connection is closed, or closes once everything written has been sent.

Every state is bounded in bytes, and every state except RESPONSE and DETACHED in time:

    HEAD      ``head_seconds``, then 408, or no response to silence; MAX_HEAD_BYTES, then 431
    BODY      ``body_idle_seconds`` without a byte while the application reads, and
              ``body_seconds`` in total, then 408, or no response if one has started; reading
              pauses at BODY_AHEAD_BYTES that the application has not read
    RESPONSE  the application's time; reading pauses at HELD_BYTES after the request
    DETACHED  the time of the stream; the same bound in bytes
    IDLE      ``idle_seconds``
    DRAINING  ``linger_seconds``; MAX_REQUEST_BYTES

In all states, including CLOSED, a connection whose client reads none of the bytes that wait for it
is aborted after ``stall_seconds``.

Bytes after a request are not parsed before its response is complete. So requests are answered in
order, one at a time, and pipelined requests cannot disturb a stream.
"""

from dataclasses import dataclass
from enum import Enum

from reattach.domain.limits import (
    BODY_IDLE_SECONDS,
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_CONNECTION_SECONDS,
    LINGER_SECONDS,
    WATCH_SECONDS,
)


class State(Enum):
    __hash__ = object.__hash__  # Enum's own is implemented in Python and slow.

    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"
    DETACHED = "detached"
    IDLE = "idle"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a connection may stay in each state; tests use shorter times."""

    stall_seconds: float
    head_seconds: float = HEAD_SECONDS
    body_idle_seconds: float = BODY_IDLE_SECONDS
    body_seconds: float = BODY_SECONDS
    idle_seconds: float = IDLE_CONNECTION_SECONDS
    linger_seconds: float = LINGER_SECONDS

    @property
    def interval_seconds(self) -> float:
        """How often the watch runs: well within the shortest timeout."""
        shortest = min(
            self.stall_seconds, self.head_seconds, self.body_idle_seconds, self.idle_seconds
        )
        return min(WATCH_SECONDS, shortest / 4)
