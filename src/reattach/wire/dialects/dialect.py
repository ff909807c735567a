"""A dialect: a pure function from the events of a run to the frames of another protocol.

The frames of a run in a dialect are one list, the same for every reader at every time: they depend
on the facts of the run and on its events, and on no clock, chance or reader. A cursor of the
dialect is a position in that list. So nothing is stored for a dialect, and every process computes
the same frames.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from reattach.domain.events import Event
from reattach.domain.ids import AgentId, RunId


class RunFacts(Struct, frozen=True):
    """The facts of a run that its frames may show, from its record. They never change."""

    run_id: RunId
    created_at: datetime
    agent_id: AgentId
    conversation_id: str | None
    """None for the default conversation of the agent."""
    model: str | None
    background: bool
    client_tools: frozenset[str] = frozenset()
    """The names of the tools that the client runs."""
    given: Mapping[str, Any] = {}
    """Members of the request that the dialect returns to its clients."""


class Fold(Protocol):
    """The state of a dialect at one event of a run. It is fed every event once, in order."""

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the state."""

    def begin(self) -> Sequence[bytes]:
        """Return the frames before the first event. Called once, before ``add``."""

    def add(self, event: Event) -> Sequence[bytes]:
        """Return the frames that the event adds, often one, or none.

        The frames of the run's end come with the last event, ``Usage``, because some of them need
        the usage.
        """

    def add_piece(self, text: bytes) -> bytes:
        """Return the frame that a further piece of the newest event's text adds; b"" for none.

        The effect is that of ``add`` with an event at the same place, whose text is ``text`` as
        JSON. Most pieces come this way, because a frame can be made around the JSON as it is.

        The newest event is a piece of text, of reasoning, or of the arguments of a call. The
        further one has no signature and no name.
        """


class Dialect(Protocol):
    """A protocol for reading runs. It has no state of its own."""

    @property
    def name(self) -> str:
        """A word for the records, metrics and messages, such as ``responses``."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of a stream beside those that every event stream has."""

    @property
    def last_frame(self) -> bytes:
        """The bytes after all frames of an ended run; b"" for none. No cursor counts them."""

    @property
    def cursor_name(self) -> str:
        """The client's word for its cursor, for errors."""

    @property
    def first_cursor(self) -> int:
        """The client's cursor before the first frame: -1 if it sends the number of the last one."""

    def fold(self, facts: RunFacts) -> Fold:
        """Return the state before the first event of a run."""
