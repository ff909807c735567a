"""Runs that go on in another server process, as a client that lost its connection sees them."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from reattach.client.steps import Look, Request, Steps
from reattach.domain.clock import Clock
from reattach.domain.limits import MAX_CURSOR

_LOOK_UP_SECONDS: Final = 5.0
"""The time limit of a look-up beside a stream, which delays the next event."""

TakeoverCause = Literal["crash", "handover"]


@dataclass(frozen=True, slots=True)
class Takeover:
    """A run that goes on in another server process than before the connection was lost."""

    cause: TakeoverCause
    """``crash``: the process before died or lost its stores; ``handover``: it was being stopped."""

    was_refused: bool
    """Whether connections were refused meanwhile, so that the server itself was restarted."""

    cursor: int
    """The seq of the last yielded event; 0 if there is none."""

    gap_seconds: float
    """The time since the connection was lost."""


class _LookUpError(Exception):
    """A look-up beside a stream failed."""


@dataclass(slots=True)
class _Gap:
    """The time without a connection, and afterwards until its cause is known."""

    cursor: int
    began: float
    was_refused: bool = False
    last_logged: int = 0
    """The newest event in the log when the stream was open again."""


class Takeovers:
    """Finds out whether a run goes on in another process after its connection was lost.

    The run's attempts say so, but a stream may be open again before the next process has taken the
    run over. So they are read when the stream opens, and again at an event that was logged later.
    A takeover is not reported if look-ups fail.
    """

    def __init__(self, clock: Clock, report: Callable[[Takeover], object]) -> None:
        self._clock = clock
        self._report = report
        self._token: str | None = None
        self._seen: int | None = None
        """The number of attempts that were seen; None if it is unknown."""
        self._gap: _Gap | None = None

    def note_loss(self, cursor: int, *, was_refused: bool) -> None:
        """Note that the connection was lost, or that another one failed or was refused."""
        if self._gap is None or self._gap.cursor != cursor:
            self._gap = _Gap(cursor, self._clock.monotonic_seconds())
        self._gap.was_refused = self._gap.was_refused or was_refused

    def open(self, run_id: str, token: str | None) -> Steps[None]:
        """Look at a run whose stream has just been opened with this token."""
        self._token = token
        with suppress(_LookUpError):
            if self._seen is None:
                self._gap = None
                self._seen = len((yield from self._attempts(run_id)))
            elif self._gap is not None:
                self._gap.last_logged = yield from self._last_seq(run_id)
                yield from self._look(run_id, self._gap)

    def see(self, event: Mapping[str, Any]) -> Steps[None]:
        """Look again, if the event is the first by which the cause of a gap can be known."""
        gap = self._gap
        if gap is None or event.get("seq_id", 0) <= gap.last_logged:
            return
        # The next process may log returns before its attempt is noted, but nothing else.
        if event["message_type"] == "tool_return_message":
            return
        self._gap = None
        try:
            yield from self._look(event["run_id"], gap)
        except _LookUpError:
            self._seen = None

    def _look(self, run_id: str, gap: _Gap) -> Steps[None]:
        """Report the newest attempt, if it has begun in the gap."""
        attempts = yield from self._attempts(run_id)
        new, self._seen = attempts[max(self._seen or 0, 1) :], len(attempts)
        for one in reversed(new):
            # One of which an event came over the old connection did not end that connection.
            if one["interruption"] in get_args(TakeoverCause) and one["first_seq"] > gap.cursor:
                seconds = self._clock.monotonic_seconds() - gap.began
                self._gap = None
                self._report(Takeover(one["interruption"], gap.was_refused, gap.cursor, seconds))
                return

    def _attempts(self, run_id: str) -> Steps[list[dict[str, Any]]]:
        """Return all attempts at the run; none if there was only one. Raises _LookUpError."""
        status, run = yield from self._ask(Request("GET", f"/v1/runs/{run_id}", token=self._token))
        if status != 200:
            raise _LookUpError
        attempts = (run.get("metadata") or {}).get("attempts", [])
        assert isinstance(attempts, list)
        return attempts

    def _last_seq(self, run_id: str) -> Steps[int]:
        """Return the newest seq in the run's log; 0 if the run has ended. Raises _LookUpError."""
        path, body = f"/v1/runs/{run_id}/stream", {"starting_after": MAX_CURSOR}
        status, refusal = yield from self._ask(Request("POST", path, body, self._token))
        if status not in {200, 409}:
            raise _LookUpError
        return int(refusal.get("last_seq", 0))

    def _ask(self, request: Request) -> Steps[tuple[int, dict[str, Any]]]:
        """Return the status and the JSON object of an answer; ``{}`` for another body."""
        answer: tuple[int, dict[str, Any]] | None = yield Look(request, _LOOK_UP_SECONDS)
        if answer is None:
            raise _LookUpError
        return answer
