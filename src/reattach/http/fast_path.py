"""A fast path for well-formed resumes, which arrive in crowds, and sends: it bypasses routing.

It never refuses a request as such. Anything unusual or invalid goes through the regular routes, so
that each error is created in one place.
"""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from reattach.domain.errors import LimitExceededError, ReattachError
from reattach.domain.ids import UUID4
from reattach.domain.limits import FAST_PATH_BODY_BYTES
from reattach.http.api.resuming import conversation_stream, run_stream
from reattach.http.api.sending import send_to_conversation
from reattach.http.context import Context
from reattach.http.errors import UnknownErrors, error_response
from reattach.http.json import is_small, parse
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.auth import Authenticator
from reattach.http.middleware.pages import send_varying
from reattach.http.paths import path_of
from reattach.http.schemas.resuming import ResumeBody
from reattach.http.schemas.sending import ConversationSendBody
from reattach.records.base import KeyScope

logger = structlog.get_logger(__name__)

_PATH: Final = re.compile(
    rf"/v1/(?:conversations/(default|(?:conv|agent)-{UUID4})/(stream|messages)"
    rf"|runs/(run-{UUID4})/stream)"
)
_VARY: Final = (b"vary", b"Origin")
"""The header that the CORS middleware adds to responses to requests without an ``Origin``."""

_UNUSUAL_HEADERS: Final = frozenset(
    {b"content-encoding", b"expect", b"origin", b"transfer-encoding"}
)
_LENGTH: Final = re.compile(rb"[0-9]{1,6}")


_Answer = Callable[[Scope, Receive, Send], Awaitable[ReattachError | None]]
"""Answers a request; returns an error, having sent nothing, if the regular route has to."""


class FastPath:
    """Answers resumes, and sends to conversations, with the same bytes as their routes.

    With ``is_observed``, the access log or traces look at the routes of sends.
    """

    def __init__(
        self, context: Context, authenticator: Authenticator, *, is_observed: bool = False
    ) -> None:
        self._context = context
        self._authenticator = authenticator
        self._takes_sends = not is_observed

    async def try_answer(self, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Answer and return None, or return the ``receive`` for the regular routes."""
        place = _PATH.fullmatch(path_of(scope))
        if place is None or scope["method"] != "POST" or scope.get("query_string"):
            return receive
        headers = dict(scope["headers"])
        if not is_usual(headers) or len(headers) != len(scope["headers"]):
            return receive
        conversation_id, action, run_id = place.groups()
        sends = action == "messages"
        if sends and (not self._takes_sends or b"last-event-id" in headers):
            return receive
        message = await receive()
        if message["type"] != "http.request" or message.get("more_body"):  # It is not complete.
            return _replay(message, receive)
        data = message["body"]
        try:
            access = await self._authenticator.access(scope, headers)
            # Stream tokens take the regular way.
            access.require(KeyScope.SEND if sends else KeyScope.READ)
            access.use.admit()
            scope[ACCESS] = access
            if sends:
                answer = self._send(access, conversation_id, data)
            else:
                answer = await self._resume(access, conversation_id, run_id, data)
        except (ReattachError, ValidationError):
            return _replay(message, receive)
        except Exception:
            logger.exception("fast path failed; using the regular route")
            return _replay(message, receive)
        error = await answer(scope, receive, send)
        return None if error is None else _replay(message, receive)

    async def _resume(
        self, access: Access, conversation_id: str | None, run_id: str, data: bytes
    ) -> _Answer:
        body = ResumeBody.model_validate(parse(data))
        response = (
            await conversation_stream(self._context, access, conversation_id, body)
            if conversation_id
            else await run_stream(self._context, access.tenant, run_id, body)
        )

        def answer(*asgi: Any) -> Awaitable[ReattachError | None]:
            # Only the regular route waits for a log that is about to be opened.
            return response.respond(*asgi, _VARY, waits=False)

        return answer

    def _send(self, access: Access, conversation_id: str, data: bytes) -> _Answer:
        if not is_small(data):
            raise LimitExceededError("The body has too many values for the event loop.")
        body = ConversationSendBody.model_validate(parse(data))
        # From here on it may start a run, so no error leaves it to the regular route.
        operate = UnknownErrors(partial(self._operate, access, conversation_id, body, len(data)))

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await operate(scope, receive, partial(send_varying, send))

        return answer

    async def _operate(
        self,
        access: Access,
        conversation_id: str,
        body: ConversationSendBody,
        body_bytes: int,
        *asgi: Any,
    ) -> None:
        """Send as the route does, between the middleware for quotas of bodies and for errors."""
        held_bytes = 0
        try:
            access.use.hold_body(body_bytes)
            held_bytes = body_bytes
            response = await send_to_conversation(conversation_id, body, self._context, access)
            await response(*asgi)
        except ReattachError as error:
            await error_response(error)(*asgi)
        finally:
            access.use.release_body(held_bytes)


def is_usual(headers: dict[bytes, bytes]) -> bool:
    """Return whether a request with these headers may take the fast path."""
    length = headers.get(b"content-length", b"")
    return (
        headers.get(b"content-type") == b"application/json"
        and _LENGTH.fullmatch(length) is not None
        and 0 < int(length) <= FAST_PATH_BODY_BYTES
        and _UNUSUAL_HEADERS.isdisjoint(headers)
    )


def _replay(message: Message, receive: Receive) -> Receive:
    """Return a ``receive`` that returns ``message`` first."""
    pending = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
