"""Connections beyond the limits, whose requests are read only to refuse them in a useful way.

An ``EventSource`` gives up at every status except 200, so the stream of a page is refused by a
stream that says when to try again. Everything else gets 503. Few connections are read at a time,
each for REFUSED_SECONDS; the others are refused unread.
"""

from collections.abc import Mapping
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from typing_extensions import override

from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.domain.limits import REFUSED_SECONDS
from reattach.http.connection.protocol import Endpoint, HttpConnection
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import State, Timeouts
from reattach.http.connection.watch import Watch
from reattach.http.errors import error_response
from reattach.http.stream.retried import RetriedStreams
from reattach.meters.meters import Meters


class Refusals:
    """The refused connections of a server that are read, at most ``most`` at a time.

    ``cors`` are the options of the CORS middleware, because a page must be able to read the stream.
    """

    def __init__(
        self, state: ServerState, cors: Mapping[str, Any], most: int, meters: Meters | None = None
    ) -> None:
        self._state = state
        self._cors = cors
        self._meters = meters or Meters()
        self._most = most
        # A timer of its own: these connections must not give way to admitted ones.
        self._watch: Final = Watch(
            Timeouts(
                stall_seconds=REFUSED_SECONDS,
                head_seconds=REFUSED_SECONDS,
                body_idle_seconds=REFUSED_SECONDS,
                body_seconds=REFUSED_SECONDS,
                idle_seconds=REFUSED_SECONDS,
                linger_seconds=REFUSED_SECONDS,
            )
        )
        self._errors: dict[tuple[str, int], TooManyConnectionsError] = {}

    def take(self, client: tuple[str, int], error: TooManyConnectionsError) -> bool:
        """Return whether the refused connection of the client is read; if so, ``leave`` ends it."""
        if len(self._errors) >= self._most or client in self._errors:
            return False
        self._errors[client] = error
        return True

    def connection(self, client: tuple[str, int]) -> HttpConnection | None:
        """Return the protocol of a connection that was taken; None for any other client."""
        error = self._errors.get(client)
        return None if error is None else self._connection(client, error)

    def leave(self, client: tuple[str, int]) -> bool:
        """Forget a connection, and return whether it was one of these."""
        return self._errors.pop(client, None) is not None

    def _connection(
        self, client: tuple[str, int], error: TooManyConnectionsError
    ) -> HttpConnection:
        response = error_response(error)
        response.headers["connection"] = "close"
        app = CORSMiddleware(RetriedStreams(response), **self._cors)
        endpoint = Endpoint(app, self._state, self._watch, _Place(self, client), self._meters)
        return RefusedConnection(endpoint, client, error)


class RefusedConnection(HttpConnection):
    """A connection whose request, or silence, is answered with ``error``."""

    __slots__ = ("_error",)

    def __init__(
        self, endpoint: Endpoint, client: tuple[str, int], error: TooManyConnectionsError
    ) -> None:
        super().__init__(endpoint, client)
        self._error = error

    @override
    def time_is_up(self) -> None:
        if self.state is State.HEAD and self._is_silent:
            self._queue = None
            self._refuse(self._error)
        else:
            super().time_is_up()


class _Place:
    """The place of one connection among those that are read."""

    def __init__(self, refusals: Refusals, client: tuple[str, int]) -> None:
        self._refusals = refusals
        self._client = client

    def leave(self, address: str) -> None:  # noqa: ARG002
        self._refusals.leave(self._client)
