"""The states of a connection, and the rules that hold in each of them.

    HEAD      A request's head is awaited, on a new connection or after the head's first byte.
    BODY      The head is complete, the request's body is not. The application may be answering.
    RESPONSE  The request is complete, the response is not, and ends when the application says so.
    KEPT      As RESPONSE, but the application has returned and a stream is written from elsewhere.
    IDLE      Between requests: the last response is complete and nothing of the next request came.
    DRAINING  Nothing more is written. What still comes is discarded, so that the client reads the
              answer: closing a socket with unread bytes resets it (RFC 9112, section 9.6).
    CLOSED    The connection is closed, or closes once the client has taken what was written.

Every state is bounded in time and in bytes:

    HEAD      ``head_seconds``, then 408, or no answer if nothing came; MAX_HEAD_BYTES, then 431
    BODY      ``body_idle_seconds`` without a byte while the application takes what comes, and
              ``body_seconds`` in all, then 408, or no answer if the response has begun; reading
              pauses at BODY_AHEAD_BYTES that the application has not taken
    RESPONSE  the application's time; reading pauses at HELD_BYTES of what follows the request
    KEPT      the time of the stream; the same bound of bytes
    IDLE      ``idle_seconds``
    DRAINING  ``linger_seconds``; MAX_REQUEST_BYTES

and in all of them, CLOSED included, a connection whose client takes none of the bytes that wait for
it is aborted after ``stall_seconds``.

What follows a request is not looked at before its response is complete. So requests are answered
one after the other in their order, and whatever stands behind a stream cannot disturb it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from reattach.domain.limits import (
    BODY_IDLE_SECONDS,
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_CONNECTION_SECONDS,
    LINGER_SECONDS,
    WATCH_SECONDS,
)


class State(Enum):
    __hash__ = object.__hash__  # Enum's own is written in Python, and states are looked up often.

    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"
    KEPT = "kept"
    IDLE = "idle"
    DRAINING = "draining"
    CLOSED = "closed"


NEXT: Final[Mapping[State, frozenset[State]]] = {
    # HEAD to HEAD: the first byte came, and the time begins anew.
    State.HEAD: frozenset({State.HEAD, State.BODY, State.RESPONSE, State.DRAINING, State.CLOSED}),
    # BODY to BODY: more of it came. To KEPT and IDLE: the response was ahead of the request.
    State.BODY: frozenset(
        {State.BODY, State.RESPONSE, State.KEPT, State.IDLE, State.DRAINING, State.CLOSED}
    ),
    State.RESPONSE: frozenset({State.KEPT, State.IDLE, State.DRAINING, State.CLOSED}),
    State.KEPT: frozenset({State.IDLE, State.DRAINING, State.CLOSED}),
    State.IDLE: frozenset({State.HEAD, State.BODY, State.RESPONSE, State.DRAINING, State.CLOSED}),
    State.DRAINING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset({State.CLOSED}),
}
"""The states that may follow each state."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a connection may stay in a state; tests set shorter times."""

    stall_seconds: float
    head_seconds: float = HEAD_SECONDS
    body_idle_seconds: float = BODY_IDLE_SECONDS
    body_seconds: float = BODY_SECONDS
    idle_seconds: float = IDLE_CONNECTION_SECONDS
    linger_seconds: float = LINGER_SECONDS

    @property
    def tick_seconds(self) -> float:
        """How often connections are looked at: well within the shortest time."""
        shortest = min(
            self.stall_seconds, self.head_seconds, self.body_idle_seconds, self.idle_seconds
        )
        return min(WATCH_SECONDS, shortest / 4)
