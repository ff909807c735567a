"""One reading over as many connections as it takes: the protocol of the client, without I/O."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reattach.client.errors import (
    ClosedError,
    GaveUpError,
    LostError,
    StoppedError,
    not_a_stream,
    refusal,
    retry_after_seconds,
)
from reattach.client.plans import Plan
from reattach.client.sse import Parser
from reattach.client.states import Life, Retry, State
from reattach.client.steps import (
    Answer,
    Disconnect,
    Emit,
    Event,
    GetToken,
    Open,
    Read,
    ReadAll,
    Request,
    Steps,
    Wait,
)
from reattach.client.takeovers import Takeover, Takeovers
from reattach.client.tokens import Tokens
from reattach.domain.clock import Clock, SystemClock
from reattach.domain.errors import ReattachError, UnavailableError
from reattach.redact import without_secrets

_LEAST_SILENCE_SECONDS: Final = 10.0
"""A network that is merely slow may be silent for this long."""

_LEAST_READ_SECONDS: Final = 0.01
"""Keeps the limit of a read positive when a token is about to be due."""

_MOST_DOUBLINGS: Final = 30
"""Keeps the power finite; every wait has reached its bound by then."""


@dataclass
class Core:
    """The settings and state that the streams of a client share."""

    url: str
    tokens: Tokens
    keepalive_seconds: float
    give_up_seconds: float
    first_wait_seconds: float
    longest_wait_seconds: float
    on_retry: Callable[[Retry], object] | None = None
    on_attached: Callable[[str | None], object] | None = None
    on_takeover: Callable[[Takeover], object] | None = None
    token_seconds: float = 10.0
    """The time limit of an asynchronous token function."""
    was_attached: bool = False
    """Whether the server itself has answered before."""
    clock: Clock = field(default_factory=SystemClock)
    uniform: Callable[[float, float], float] = random.uniform

    @property
    def shown_url(self) -> str:
        """The URL for errors, without a password."""
        return without_secrets(self.url)

    @property
    def silence_seconds(self) -> float:
        """The time without a byte after which a connection counts as lost."""
        return max(3 * self.keepalive_seconds, _LEAST_SILENCE_SECONDS)


class Reading:
    """Reads a plan until it has ended, and keeps the state of its life.

    A connection that is lost is replaced: at once the first time, then after random waits up to a
    bound that doubles. An event or a keepalive ends the series; a mere answer does not, because a
    proxy may answer 200 and end at once.
    """

    def __init__(self, core: Core, plan: Plan, life: Life) -> None:
        self._core = core
        self._plan = plan
        self._life = life
        self._failures = 0
        self._spent_seconds = 0.0
        """The time without a sign of life."""
        self._mark = core.clock.monotonic_seconds()
        """The moment up to which it was counted."""
        self._since = core.clock.now()
        self._takeovers = (
            None if core.on_takeover is None else Takeovers(core.clock, core.on_takeover)
        )

    def steps(self) -> Steps[None]:
        """Raises as ``Client.follow`` does."""
        last = State("closed")
        try:
            self._note_life()
            self._plan.begin()
            while not self._plan.ended:
                self._life.begin_attempt()
                yield from self._attempt()
            last = State("ended", stop_reason=self._plan.stop_reason)
        except ClosedError:
            raise
        except ReattachError as error:
            last = State("failed", error=error)
            if error.status > 401:
                self._plan.forget()
            raise
        finally:
            self._life.set(last)

    def _attempt(self) -> Steps[None]:
        """Read one connection. It returns when another one is needed, or the plan has ended."""
        try:
            if self._plan.is_idle:
                self._life.set(State("idle"))
                yield Wait(None)
                return
            self._life.set(State("connecting"))
            yield from self._read(self._plan.request())
        except StoppedError:
            yield Disconnect()
        except LostError as loss:
            yield Disconnect()
            if loss.cause is not None:
                yield from self._wait(loss, loss.cause)

    def _read(self, request: Request) -> Steps[None]:
        core, plan, life = self._core, self._plan, self._life
        renewing = State("renewing")
        answer, token = yield from opened(core, request, lambda: life.set(renewing))
        yield from self._check(answer)
        core.was_attached = True
        plan.know(answer.headers.get("x-run-id"))
        if core.on_attached is not None:
            core.on_attached(plan.run_id)
        if self._takeovers is not None and plan.run_id is not None:
            yield from self._takeovers.open(plan.run_id, token)
        life.set(State("live"))
        parser = Parser()
        retry_seconds = 0.0
        while True:
            if core.tokens.is_due:
                life.set(renewing)
                yield GetToken()
                raise LostError
            data = yield from self._chunk()
            if not data:
                # A server that is about to stop ends the body, and says when to come back.
                raise LostError("the stream broke", retry_seconds)
            is_alive = False
            for frame in parser.feed(data):
                if frame.retry.isdecimal():
                    retry_seconds = int(frame.retry) / 1000
                events = plan.take(frame)
                if events is not None:
                    if not is_alive:
                        is_alive = True
                        self._note_life()
                    retry_seconds = 0.0
                    yield from self._emit(events)
                if plan.ended:
                    yield Disconnect()
                    return

    def _chunk(self) -> Steps[bytes]:
        """Return the next bytes of the stream. Raises LostError without a cause for a renewal."""
        self._life.check()
        try:
            data: bytes = yield Read()
        except LostError:
            # The limit of a read is no longer than the time until the renewal.
            if self._core.tokens.is_due:
                raise LostError from None
            raise
        self._life.check()
        return data

    def _emit(self, events: list[Event]) -> Steps[None]:
        for event in events:
            if self._takeovers is not None:
                yield from self._takeovers.see(event)
            yield Emit(event)
            # The time that the consumer took is no silence of the server.
            self._mark = self._core.clock.monotonic_seconds()
            self._plan.settle()
            self._life.check()

    def _check(self, answer: Answer) -> Steps[None]:
        """Raise LostError or ReattachError if the answer is no event stream."""
        core = self._core
        if answer.status != 200:
            content = yield ReadAll()
            refused = _refusal(core, answer, content, was_attached=core.was_attached)
            # No run is active: the one that this client followed last is still there.
            is_nothing = isinstance(refused, ReattachError) and refused.status in {400, 404}
            if is_nothing and self._plan.fall_back():
                raise LostError
            raise refused
        media_type = answer.headers.get("content-type", "")
        if not media_type.startswith("text/event-stream"):
            raise not_a_stream(core.shown_url, media_type, was_attached=core.was_attached)

    def _note_life(self) -> None:
        self._failures = 0
        self._spent_seconds = 0.0
        self._mark = self._core.clock.monotonic_seconds()
        self._since = self._core.clock.now()

    def _wait(self, loss: LostError, cause: str) -> Steps[None]:
        """Wait before the next attempt. Raises GaveUpError when no time is left for one."""
        core, plan = self._core, self._plan
        if self._takeovers is not None:
            self._takeovers.note_loss(plan.cursor, was_refused=loss.was_refused)
        now = core.clock.monotonic_seconds()
        # More time than that: the computer slept.
        longest_seconds = core.silence_seconds + core.longest_wait_seconds
        self._spent_seconds += min(now - self._mark, longest_seconds)
        self._mark = now
        seconds = 0.0
        if self._failures:
            doubled = core.first_wait_seconds * 2.0 ** min(self._failures - 1, _MOST_DOUBLINGS)
            seconds = core.uniform(0.0, min(doubled, core.longest_wait_seconds))
        seconds = max(seconds, loss.least_seconds)
        self._failures += 1
        remaining_seconds = core.give_up_seconds - self._spent_seconds
        if seconds >= remaining_seconds:
            fact = f"No event arrived for {core.give_up_seconds:g} s"
            if loss.least_seconds >= remaining_seconds > 0:
                fact = (
                    f"The server asks to wait {loss.least_seconds:g} s, and the client gives up in "
                    f"{remaining_seconds:g} s"
                )
            raise GaveUpError(
                f"{fact}; last cause: {cause}.",
                remedy=plan.remedy,
                since=self._since,
                cause=cause,
                cursor=plan.cursor,
            ) from loss
        self._life.set(State("waiting", attempt=self._failures, delay_seconds=seconds, cause=cause))
        if core.on_retry is not None:
            core.on_retry(Retry(cause, plan.cursor, seconds, remaining_seconds))
        yield Wait(seconds)


def opened(
    core: Core,
    request: Request,
    on_renewal: Callable[[], object] = lambda: None,
    *,
    silence_seconds: float | None = None,
) -> Steps[tuple[Answer, str | None]]:
    """Send a request with the token, once more with a fresh one if it was refused.

    Return the answer and the token that it was sent with.
    """
    refused: str | None = None
    while True:
        token: str | None = yield GetToken(refused)
        seconds = core.silence_seconds if silence_seconds is None else silence_seconds
        if core.tokens.renew_seconds is not None:
            seconds = min(seconds, max(core.tokens.renew_seconds, _LEAST_READ_SECONDS))
        answer: Answer = yield Open(replace(request, token=token), seconds)
        if answer.status != 401 or core.tokens.source is None or refused is not None:
            return answer, token
        on_renewal()
        refused = token


def _refusal(
    core: Core, answer: Answer, content: bytes, *, was_attached: bool
) -> ReattachError | LostError:
    seconds = retry_after_seconds(answer.headers, core.clock.now())
    return refusal(
        core.shown_url, answer.status, content, least_seconds=seconds, was_attached=was_attached
    )


def call(core: Core, request: Request, *, silence_seconds: float | None = None) -> Steps[Any]:
    """Return the JSON of an answer, or None for an empty one.

    Raises:
        UnavailableError: The server cannot be reached, or is busy.
        ReattachError: The server refused, as for ``Client.follow``.
    """
    try:
        answer, _ = yield from opened(core, request, silence_seconds=silence_seconds)
        content: bytes = yield ReadAll()
        if not 200 <= answer.status < 300:
            raise _refusal(core, answer, content, was_attached=False)
    except StoppedError:
        raise ClosedError("client") from None
    except LostError as loss:
        raise UnavailableError(
            f"The server at {core.shown_url} is not available: {loss.cause}.",
            remedy="Try again later.",
            retry_after_seconds=int(loss.least_seconds) or 1,
        ) from loss
    try:
        return json.loads(content) if content else None
    except ValueError:
        raise ReattachError(
            f"{core.shown_url} answered with another text than JSON. Check that this is the URL "
            "of a Reattach server."
        ) from None
