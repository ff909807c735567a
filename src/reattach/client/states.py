"""The states of a stream, and the hold that its consumer has on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reattach.client.errors import ClosedError, StoppedError
from reattach.domain.errors import ReattachError

StateName = Literal[
    "idle", "connecting", "live", "waiting", "renewing", "ended", "failed", "closed"
]


@dataclass(frozen=True, slots=True)
class State:
    """The state of a stream.

    ``idle``: nothing was asked for yet; ``many`` also while it has no run. ``connecting``;
    ``live``: events come as the server logs them. ``waiting``: the connection was lost, and the
    next attempt comes after ``delay_seconds``. ``renewing``: waiting for a fresh token. ``ended``:
    every event was yielded. ``failed``: ``error`` says why. ``closed``: the consumer left.
    """

    name: StateName
    attempt: int = 0
    """While waiting: the failures since the last sign of life."""

    delay_seconds: float = 0.0
    cause: str = ""
    """While waiting: the cause of the last failure, in one line."""

    stop_reason: str | None = None
    """At the end: the run's stop reason, if its event came."""

    error: ReattachError | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed connection that is about to be retried."""

    cause: str
    """The cause of the failure, in one line."""

    cursor: int
    """The seq of the last yielded event; 0 if there is none, and for several runs."""

    delay_seconds: float
    """The wait before the next attempt."""

    remaining_seconds: float
    """How long the client keeps retrying before it gives up."""


OnState = Callable[[State], object]


class Life:
    """One reading as seen from outside: its state, and calls that end its steps.

    A driver sets ``wake``, which ends a wait, and ``interrupt``, which ends any step.
    """

    def __init__(self, on_state: OnState | None) -> None:
        self.state = State("idle")
        self.is_closed = False
        self.is_changed = False
        """Whether to connect anew, for another request."""
        self.wake: Callable[[], None] = _nothing
        self.interrupt: Callable[[], None] = _nothing
        self._on_state = on_state

    def set(self, state: State) -> None:
        self.state = state
        if self._on_state is not None:
            self._on_state(state)

    def close(self) -> None:
        """End the reading with ClosedError. Idempotent."""
        self.is_closed = True
        self.interrupt()

    def change(self) -> None:
        """Connect anew, at once."""
        self.is_changed = True
        self.interrupt()

    @property
    def is_stopped(self) -> bool:
        """Whether a call from outside ends the present step."""
        return self.is_closed or self.is_changed

    def check(self) -> None:
        """Raise StoppedError if a call from outside ends the present step."""
        if self.is_stopped:
            raise StoppedError

    def begin_attempt(self) -> None:
        """Note that the next request takes every change into account. Raises ClosedError."""
        self.is_changed = False
        if self.is_closed:
            raise ClosedError


def _nothing() -> None:
    pass
