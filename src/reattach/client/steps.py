"""The steps of a reading: input, output and waits, without a decision.

A reading is a generator that yields steps and gets their results. Its driver takes each step, over
asyncio or in the calling thread, and knows nothing of the protocol.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from reattach.client.errors import LostError, StoppedError
from reattach.domain.errors import ReattachError

T = TypeVar("T")

Event = Mapping[str, Any]
"""An event as sent by the server; ``message_type`` is its kind."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the server; ``path`` may have a query."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a response. Its headers have lower-case names."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and return the Answer. The connection counts as lost after the silence."""

    request: Request
    silence_seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """Return the next bytes of the open response; none at its end."""


@dataclass(frozen=True, slots=True)
class ReadAll:
    """Return the whole body of the open response."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the open response, if there is one."""


@dataclass(frozen=True, slots=True)
class Look:
    """Send a request beside the open response.

    Its result is the status and the JSON object of the answer, or None if it failed or took longer
    than ``seconds``.
    """

    request: Request
    seconds: float


@dataclass(frozen=True, slots=True)
class GetToken:
    """Return the token to send, another one than ``instead_of``."""

    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for this time, without a bound if it is None, or until a call from outside."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Emit:
    """Give the consumer an event. The next step follows when it asks for more."""

    event: Event


Step = Open | Read | ReadAll | Disconnect | Look | GetToken | Wait | Emit

Steps = Generator[Step, Any, T]
"""Steps that end with a result.

A driver throws LostError into it if a step failed in a way that may pass, StoppedError if a call
from outside ended the step, and ReattachError for every other failure.
"""

FAILURES: Final = (LostError, StoppedError, ReattachError)


class Course(Generic[T]):
    """The way of a driver through steps. ``result`` is set once no ``step`` is left."""

    result: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.step: Step | None = None
        self._go(partial(next, steps))

    def take(self, result: object) -> None:
        """Go on with the result of the step."""
        self._go(partial(self._steps.send, result))

    def fail(self, error: Exception) -> None:
        """Go on after a failure of the step."""
        self._go(partial(self._steps.throw, error))

    def _go(self, on: Callable[[], Step]) -> None:
        try:
            self.step = on()
        except StopIteration as end:
            self.step, self.result = None, end.value
